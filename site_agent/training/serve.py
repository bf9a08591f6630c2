"""The warm trainer: watches a spool folder and does the jobs in it, one at a time, until it is asked to end.

Importing the libraries and loading a model take longer than a small round, so one trainer serves many jobs. It ends
when the spool holds a file ``stop``, or when the agent that started it is gone and its end of the standard input with
it. A job that is under way is then left open, since its files appear whole or not at all. Knows no torch.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from site_agent.jobs.job_dir import JOB_FILE, READY_FILE, RESULT_FILE, STOP_FILE, write_document
from site_agent.training.progress import TrainerStopped

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.05

JobCloser = Callable[[Path, Callable[[], bool]], None]
"""Does the job of a folder and closes it; asks the second argument now and then whether to stop."""


def serve(spool: Path, close_job: JobCloser, *, should_stop: Callable[[], bool]) -> None:
    """Do jobs until ``should_stop`` says so; ``ready.json`` is there while this runs."""
    spool.mkdir(parents=True, exist_ok=True)
    ready = spool / READY_FILE
    write_document(ready, {"pid": os.getpid(), "at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    try:
        while not should_stop():
            waiting = open_jobs(spool)
            if not waiting:
                time.sleep(_LOOK_EVERY_S)
                continue
            try:
                close_job(waiting[0], should_stop)
            except FileNotFoundError:
                # Deleted by the agent under the job, perhaps at its last line: nobody waits for it any more.
                if waiting[0].exists():
                    raise
                _log.info("job folder is gone: job=%s", waiting[0].name)
    except TrainerStopped:
        _log.info("stopped with a job open")
    finally:
        ready.unlink(missing_ok=True)


def open_jobs(spool: Path) -> list[Path]:
    """The job folders that are opened and not closed, oldest first."""
    opened: list[tuple[int, Path]] = []
    for job_file in spool.glob(f"*/{JOB_FILE}"):
        try:
            if not (job_file.parent / RESULT_FILE).exists():
                opened.append((job_file.stat().st_mtime_ns, job_file.parent))
        except FileNotFoundError:
            # The agent deletes a folder when it is done with it.
            continue
    return [folder for _, folder in sorted(opened)]


class StopSignal:
    """Says whether a warm trainer is to end: a file ``stop`` in its spool, or a standard input that was closed."""

    def __init__(self, spool: Path) -> None:
        """Watch the standard input from now on, if it is a pipe that an agent holds; a container's is not one."""
        self._stop_file = spool / STOP_FILE
        self._input_closed = threading.Event()
        if _is_pipe(sys.stdin.fileno()):
            threading.Thread(target=self._wait_for_end_of_input, daemon=True).start()

    def __call__(self) -> bool:
        """Whether to end."""
        return self._input_closed.is_set() or self._stop_file.exists()

    def _wait_for_end_of_input(self) -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        self._input_closed.set()


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
