"""The audit log as a file that others can verify: JSON lines, with the exact bytes that were hashed and signed.

A header line ``{"log", "origin", "signing_spki"}``, a line ``{"seq", "body"}`` for each event, and a line
``{"checkpoint"}`` for each checkpoint; bytes are base 64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from fl_protocol.audit.checkpoint import Checkpoint
from site_agent.audit.store import StoredLog
from site_agent.durable_files import write_whole

LOG_NAME = "wardround-audit"


def export_lines(log: StoredLog, spki_der: bytes, *, origin: str) -> Iterator[str]:
    """The export's lines, without line ends.

    Raises:
        CheckpointInvalidError: a stored checkpoint is malformed; verify the log first.
    """
    yield _line({"log": LOG_NAME, "origin": origin, "signing_spki": _text(spki_der)})
    for row in log.rows:
        yield _line({"seq": row.seq, "body": _text(row.body)})
    for signed in log.checkpoints:
        checkpoint = Checkpoint.decode(signed.body)
        document = {
            "size": checkpoint.size,
            "head": checkpoint.head,
            "at": checkpoint.at.isoformat(),
            "body": _text(signed.body),
            "signature": _text(signed.signature),
        }
        yield _line({"checkpoint": document})


def export_log(log: StoredLog, spki_der: bytes, *, origin: str, to: Path) -> int:
    """Write the export whole (mode 0600); the number of lines.

    Raises:
        OSError: the file cannot be written.
        CheckpointInvalidError: a stored checkpoint is malformed.
    """
    lines = list(export_lines(log, spki_der, origin=origin))
    write_whole(to, ("\n".join(lines) + "\n").encode("utf-8"), mode=0o600)
    return len(lines)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _line(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
