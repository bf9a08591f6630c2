"""``doctor --live``: is the agent of this state folder well? For the healthchecks of containers.

Asked every few seconds, so it loads next to nothing: it reads what the agent wrote last. The loop that
writes it is the loop that everything else runs in; a stuck one does not write.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from site_agent.folder import SiteFolder
from site_agent.state.directory_lock import LOCK_FILE

# The agent writes every 5 s even where nothing changed.
SILENT_AFTER = timedelta(seconds=20)
_STATE_DIR = "WARDROUND_STATE_DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAnswer:
    """Whether the agent is well; the sentence says what is not.

    Attributes:
        code: ``well``, ``not-running``, ``stuck`` or ``cannot-record``; programs may compare it.
    """

    code: str
    sentence: str

    @property
    def is_well(self) -> bool:
        """Whether a healthcheck passes."""
        return self.code == "well"

    def document(self) -> Mapping[str, object]:
        """What ``--json`` says."""
        return {"ok": self.is_well, "code": self.code, "detail": self.sentence}


def ask_live(folder: SiteFolder, *, now: datetime) -> LiveAnswer:
    """Judge the agent of a state folder by what it wrote last.

    An agent that does not reach the coordinator is well: starting it again mends no network.
    """
    process_id = _process(folder.root / LOCK_FILE)
    said = _said(folder.status_json)
    if process_id is None or said is None or said.get("state") == "stopped":
        sentence = f"no agent runs on {folder.root}; 'wardround-site start' starts it; if it was started, see its log"
        return LiveAnswer(code="not-running", sentence=sentence)
    updated_at = said["updated_at"]
    assert isinstance(updated_at, datetime), "_said reads it"
    # A clock that was set back makes it come from the future, until the agent writes again.
    silent = abs(now - updated_at)
    if silent > SILENT_AFTER:
        sentence = (
            f"the agent (process {process_id}) has written nothing for {silent.total_seconds():.0f} s: it is stuck, or "
            f"{folder.root} cannot be written; see its log, and start it again"
        )
        return LiveAnswer(code="stuck", sentence=sentence)
    if said.get("cannot_record"):
        sentence = f"nothing can be recorded, so nothing is done ({said['cannot_record']}); see 'wardround-site status'"
        return LiveAnswer(code="cannot-record", sentence=sentence)
    sentence = f"well: the agent (process {process_id}) turned {silent.total_seconds():.0f} s ago"
    return LiveAnswer(code="well", sentence=sentence)


def _process(lock: Path) -> int | None:
    """The process that took the folder, where it lives."""
    try:
        process_id = int(lock.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    try:
        os.kill(process_id, 0)
    except PermissionError:
        # Another user's process, which lives.
        return process_id
    except (OSError, OverflowError):
        return None
    return process_id


def _said(status: Path) -> Mapping[str, object] | None:
    try:
        document = json.loads(status.read_bytes())
        updated_at = datetime.fromisoformat(document["updated_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**document, "updated_at": updated_at.replace(tzinfo=updated_at.tzinfo or UTC)}


def is_live_question(arguments: Sequence[str]) -> bool:
    """Whether a command line of ``wardround-site`` is this one, so that the program need not be loaded."""
    return "doctor" in arguments and "--live" in arguments and "--help" not in arguments


def answer_live(arguments: Sequence[str]) -> int:
    """Answer such a command line; the exit code."""
    parser = argparse.ArgumentParser(prog="wardround-site", add_help=False, allow_abbrev=False)
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get(_STATE_DIR) or "site-state"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--live", action="store_true", required=True)
    parser.add_argument("command", choices=["doctor"])
    asked = parser.parse_args(arguments)
    answer = ask_live(SiteFolder(root=asked.state_dir), now=datetime.now(UTC))
    sys.stdout.write((json.dumps(answer.document(), indent=2) if asked.json else answer.sentence) + "\n")
    return 0 if answer.is_well else 1
