"""The chain of what this site says under its signing key: one number after the other, on the disk before it is used.

A crash may lose a statement, never a number. A copy of this folder goes on with the same numbers and other words: that
is how the coordinator sees that there are two.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, SiteId, sha256_hex_from_text
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import (
    NO_STATEMENT,
    NONCE_BYTES,
    SiteStatement,
    SiteStatementKind,
    sign_site_statement,
)
from site_agent.durable_files import write_whole
from site_agent.enrolment.errors import StatementsDamagedError
from site_agent.folder import SiteFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    counter: int
    sha256: Sha256Hex
    floor: int


class StatementBook:
    """Makes statements. Only the holder of the folder's lock may: two writers would contradict each other."""

    def __init__(self, folder: SiteFolder, *, site_id: SiteId, signer: Signer, entropy: Entropy) -> None:
        """Name the folder; nothing is read yet."""
        self._path = folder.statements
        self._site_id = site_id
        self._signer = signer
        self._entropy = entropy

    def next_statement(self, kind: SiteStatementKind, *, csr_der: bytes | None = None) -> SignedBody:
        """The next statement, signed; its number is used up when this returns.

        Raises:
            StatementsDamagedError: the number of the last one cannot be read.
            OSError: it cannot be written; no statement was made.
        """
        last = self._read()
        statement = SiteStatement(
            site_id=self._site_id,
            kind=kind,
            counter=max(last.counter, last.floor) + 1,
            previous_sha256=last.sha256,
            nonce=self._entropy.draw(NONCE_BYTES),
            csr_sha256=None if csr_der is None else Sha256Hex(hashlib.sha256(csr_der).hexdigest()),
        )
        self._write(_Last(counter=statement.counter, sha256=statement.sha256, floor=last.floor))
        return sign_site_statement(self._signer, statement)

    def note_floor(self, floor: int) -> None:
        """What the coordinator has heard of this site: the next number is above it. Raises OSError."""
        last = self._read()
        if floor > max(last.floor, last.counter):
            self._write(_Last(counter=last.counter, sha256=last.sha256, floor=floor))

    def _read(self) -> _Last:
        try:
            document = json.loads(self._path.read_bytes())
            return _Last(
                counter=int(document["counter"]),
                sha256=sha256_hex_from_text(document["sha256"]),
                floor=int(document["floor"]),
            )
        except FileNotFoundError:
            return _Last(counter=0, sha256=NO_STATEMENT, floor=0)
        except (ValueError, KeyError, TypeError, IdentifierInvalidError) as error:
            advice = "Tell the coordinator's admin, delete the file, and ask to be resumed when this site is suspended."
            message = "the number of this site's last statement cannot be read"
            raise StatementsDamagedError(message, advice=advice, file=self._path.name) from error

    def _write(self, last: _Last) -> None:
        document = {"counter": last.counter, "sha256": last.sha256, "floor": last.floor}
        write_whole(self._path, (json.dumps(document) + "\n").encode(), mode=0o600)
