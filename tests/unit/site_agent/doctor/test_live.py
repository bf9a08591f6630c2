"""What the agent wrote last, judged: fresh, old, from the future, stopped, unable to record."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fl_protocol.ids import SiteId
from site_agent.doctor.live import ask_live, is_live_question
from site_agent.folder import SiteFolder
from site_agent.state.directory_lock import DirectoryLock
from site_agent.supervision.status_board import StatusBoard

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


class StillClock:
    def now(self) -> datetime:
        return AT


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder(root=tmp_path)


@pytest.fixture
def board(folder: SiteFolder) -> StatusBoard:
    """What an agent that is this process wrote at ``AT``."""
    lock = DirectoryLock(folder.root)
    lock.acquire()
    made = StatusBoard(folder.status_json, SiteId("alpha"), StillClock())
    made.write()
    return made


@pytest.mark.parametrize(("later_s", "code"), [(0, "well"), (19, "well"), (21, "stuck"), (-21, "stuck")])
def test_agent_is_well_while_it_wrote_lately(folder: SiteFolder, board: StatusBoard, later_s: float, code: str) -> None:
    answer = ask_live(folder, now=AT + timedelta(seconds=later_s))
    assert (answer.code, answer.is_well) == (code, code == "well")


def test_agent_that_stopped_or_never_started_is_not_running(folder: SiteFolder, board: StatusBoard) -> None:
    board.change_state("stopped")
    board.write()
    assert ask_live(folder, now=AT).code == "not-running"
    assert ask_live(SiteFolder(root=folder.root / "nothing"), now=AT).code == "not-running"


def test_agent_whose_process_is_gone_is_not_running_however_fresh_its_word(
    folder: SiteFolder, board: StatusBoard
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder.root / "agent.lock").write_text(f"{gone.pid}\n")
    assert ask_live(folder, now=AT).code == "not-running"


def test_agent_that_cannot_record_is_not_well(folder: SiteFolder, board: StatusBoard) -> None:
    board.recording("site-disk-full")
    board.write()
    answer = ask_live(folder, now=AT)
    assert answer.code == "cannot-record"
    assert "site-disk-full" in answer.sentence


def test_agent_without_its_coordinator_is_well(folder: SiteFolder, board: StatusBoard) -> None:
    board.connected(is_connected=False, problem="coordinator-unavailable")
    board.write()
    assert ask_live(folder, now=AT).is_well


@pytest.mark.parametrize(
    ("line", "is_it"),
    [
        ("doctor --live", True),
        ("--state-dir x doctor --live --json", True),
        ("doctor", False),
        ("doctor --live --help", False),
        ("status", False),
    ],
)
def test_live_question_is_known_by_its_words(line: str, is_it: bool) -> None:
    assert is_live_question(line.split()) is is_it


def test_live_question_is_answered_by_exit_code_without_loading_the_program(
    folder: SiteFolder, board: StatusBoard
) -> None:
    program = (
        "import sys\nfrom site_agent.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    print(end.code, sorted({'typer', 'grpc', 'sqlalchemy', 'pydantic', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor", "--live"],
        env={**os.environ, "WARDROUND_STATE_DIR": str(folder.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    # The clock of that process is years later than the agent's word.
    assert done.stdout.splitlines()[-1] == "1 []"
    assert "stuck" in done.stdout
