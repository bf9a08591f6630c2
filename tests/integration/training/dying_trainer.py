"""The trainer's own program, and a kill -9 of itself at one exact place: ``dying_trainer.py PLACE NUMBER serve ...``.

The place is a system call that the program makes on its way; the process is gone in the middle of it, as a machine
without power is. It happens once a spool: a file there says that it has.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from site_agent.jobs.job_dir import CHECKPOINT_FOLDER, PROGRESS_FILE, RESULT_FILE
from site_agent.training.__main__ import main

PLACE, NUMBER = sys.argv[1], int(sys.argv[2])
SPOOL = Path(sys.argv[sys.argv.index("--spool") + 1])
DIED = SPOOL / "died"

seen = 0


def is_time() -> bool:
    global seen  # noqa: PLW0603 - a program of one page
    seen += 1
    return seen == NUMBER and not DIED.exists()


def die() -> NoReturn:
    DIED.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit


def is_of_checkpoint(handle: int) -> bool:
    return Path(f"/proc/self/fd/{handle}").readlink().match(f"{CHECKPOINT_FOLDER}/*.tmp")


def watch() -> None:
    fsync, rename, opened = os.fsync, Path.replace, Path.open

    def watched_fsync(handle: int) -> None:
        if PLACE == "checkpoint-half-written" and is_of_checkpoint(handle) and is_time():
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    def watched_rename(self: Path, target: Path) -> Path:
        if PLACE == "before-result" and target.name == RESULT_FILE and is_time():
            die()
        return rename(self, target)

    def watched_open(self: Path, *arguments: object, **options: object) -> object:
        if PLACE == "report" and self.name == PROGRESS_FILE and arguments[:1] == ("a",) and is_time():
            die()
        return opened(self, *arguments, **options)  # type: ignore[call-overload]

    os.fsync = watched_fsync  # type: ignore[assignment]
    Path.replace = watched_rename  # type: ignore[method-assign]
    Path.open = watched_open  # type: ignore[method-assign, assignment]


watch()
raise SystemExit(main(sys.argv[3:]))
