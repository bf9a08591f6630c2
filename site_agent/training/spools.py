"""The trainer that serves every run's spool below a jobs folder: a small overseer, and trainers that hold the models.

An agent that may start nothing shares only the jobs folder with this program (``site_agent.jobs.spool``). The overseer
imports no numeric library, so it outlives them: it says that it is there, gives each one job at a time, kills one whose
job was given up, starts another for one that died, and tells the agent how it died. Rounds are
done by a trainer that stays warm; a dataset that is looked at has another, so that it does not wait behind a round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from site_agent.jobs.job_dir import JOB_FILE, RESULT_FILE, STOP_FILE
from site_agent.jobs.spool_files import (
    BEAT_EVERY_S,
    CANCEL_FILE,
    INSPECTIONS_FOLDER,
    RESTART_FILE,
    Heartbeat,
    append_end,
    write_heartbeat,
)
from site_agent.jobs.trainer_environment import threads_in, trainer_environment

_log = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "site_agent.training")

_LOOK_EVERY_S = 0.1
_GRACE_S = 5.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0


@dataclass(slots=True, kw_only=True)
class InnerTrainer:
    """One process that does jobs. Invariant: it is at one job at most."""

    process: subprocess.Popen[bytes]
    answers: int

    def give(self, job_dir: Path) -> None:
        """Give it a job."""
        assert self.process.stdin is not None
        # One that died a moment ago is found dead at the next look.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(os.fsencode(job_dir) + b"\n")
            self.process.stdin.flush()

    def has_answered(self) -> bool:
        """Whether it says that it is done with its job."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.answers, selectors.EVENT_READ)
            return bool(selector.select(timeout=0)) and os.read(self.answers, 64) != b""

    def end(self, *, grace_s: float = 0.0) -> int:
        """End it and whatever it started; its exit code. With ``grace_s``, it may first end by itself."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if grace_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.answers)
        return code


@dataclass(slots=True, kw_only=True)
class Lane:
    """One queue of jobs and the trainer that does them.

    Attributes:
        pattern: which folders of the jobs folder hold its jobs.
        is_kept_warm: whether the trainer stays for the next job.
    """

    jobs_dir: Path
    pattern: str
    is_kept_warm: bool
    start_inner_trainer: Callable[[], InnerTrainer]
    monotonic: Callable[[], float] = time.monotonic
    job_dir: Path | None = None
    _trainer: InnerTrainer | None = None
    _last_spool: Path | None = None
    _not_before: float = 0.0
    _n_deaths: int = field(default=0)

    @property
    def job_name(self) -> str | None:
        """The job that it is at, as ``RUN/ROUND``."""
        return None if self.job_dir is None else f"{self.job_dir.parent.name}/{self.job_dir.name}"

    def look(self) -> None:
        """Go on by one step; called again and again, it never waits for a trainer."""
        if self.job_dir is None:
            self._begin()
        else:
            self._follow(self.job_dir)

    def stop(self) -> None:
        """End the trainer; its job stays open."""
        if self._trainer is not None:
            self._trainer.end(grace_s=_GRACE_S if self.job_dir is None else 0.0)
        self._trainer, self.job_dir = None, None

    def _begin(self) -> None:
        if self._last_spool is not None and self._is_over(self._last_spool):
            self._last_spool = None
            self.stop()
        if self.monotonic() < self._not_before:
            return
        job_dir = next(iter(open_jobs_of(self.jobs_dir, self.pattern)), None)
        if job_dir is None:
            return
        if self._trainer is None:
            self._trainer = self.start_inner_trainer()
        self._trainer.give(job_dir)
        self.job_dir, self._last_spool = job_dir, job_dir.parent
        _log.info("job begins: job=%s", self.job_name)

    def _follow(self, job_dir: Path) -> None:
        trainer = self._trainer
        assert trainer is not None
        exit_code = trainer.process.poll()
        if trainer.has_answered():
            self.job_dir, self._n_deaths = None, 0
            if not self.is_kept_warm:
                self.stop()
        elif exit_code is not None:
            trainer.end()
            self._trainer, self.job_dir = None, None
            self._tell_death(job_dir, exit_code)
        elif _is_given_up(job_dir):
            _log.info("job is given up: job=%s", self.job_name)
            trainer.end()
            self._trainer, self.job_dir = None, None
        elif (job_dir / RESTART_FILE).exists():
            _log.warning("trainer is taken for hung: job=%s", self.job_name)
            trainer.end()
            self._trainer, self.job_dir = None, None
            (job_dir / RESTART_FILE).unlink(missing_ok=True)

    def _tell_death(self, job_dir: Path, exit_code: int) -> None:
        _log.error("trainer died: job=%s exit_code=%d", f"{job_dir.parent.name}/{job_dir.name}", exit_code)
        # A job that was closed just before is no loss; one whose folder is gone has nobody to tell.
        if not (job_dir / RESULT_FILE).exists():
            with contextlib.suppress(FileNotFoundError):
                append_end(job_dir, exit_code)
        self._not_before = self.monotonic() + min(_FIRST_WAIT_S * 2**self._n_deaths, _LONGEST_WAIT_S)
        self._n_deaths += 1

    @staticmethod
    def _is_over(spool: Path) -> bool:
        return (spool / STOP_FILE).exists() or not spool.exists()


def serve_spools(jobs_dir: Path, lanes: tuple[Lane, ...], *, should_stop: Callable[[], bool]) -> None:
    """Do the jobs of all runs until ``should_stop`` says so. A job under way then stays open."""
    life, n_beats, told, beat_at = secrets.token_hex(8), 0, None, 0.0
    try:
        while not should_stop():
            for lane in lanes:
                lane.look()
            jobs = tuple(lane.job_name for lane in lanes if lane.job_name is not None)
            now = time.monotonic()
            if jobs != told or now - beat_at >= BEAT_EVERY_S:
                n_beats += 1
                _beat(jobs_dir, Heartbeat(life=life, n_beats=n_beats, jobs=jobs))
                told, beat_at = jobs, now
            time.sleep(_LOOK_EVERY_S)
    finally:
        for lane in lanes:
            lane.stop()


def lanes_of(jobs_dir: Path, *, options: tuple[str, ...] = (), program: tuple[str, ...] = PROGRAM) -> tuple[Lane, ...]:
    """The two queues: rounds, and datasets that are looked at. ``options`` say how a round's job is done."""
    rounds = (*program, "do-jobs", *options)
    return (
        Lane(
            jobs_dir=jobs_dir,
            pattern="run-*",
            is_kept_warm=True,
            start_inner_trainer=lambda: start_inner_trainer(rounds),
        ),
        Lane(
            jobs_dir=jobs_dir,
            pattern=INSPECTIONS_FOLDER,
            is_kept_warm=False,
            start_inner_trainer=lambda: start_inner_trainer((*program, "do-jobs")),
        ),
    )


def start_inner_trainer(command: tuple[str, ...]) -> InnerTrainer:
    """Start a trainer in a process group of its own; it is told its jobs by one pipe, and answers by another."""
    read, write = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603 - the program is this installation's own
            [*command, "--answers", str(write)],
            stdin=subprocess.PIPE,
            env=trainer_environment(os.environ, threads=threads_in(os.environ)),
            pass_fds=(write,),
            start_new_session=True,
        )
    finally:
        os.close(write)
    return InnerTrainer(process=process, answers=read)


def open_jobs_of(jobs_dir: Path, pattern: str) -> Iterator[Path]:
    """The jobs that are opened, not closed and not given up, oldest first."""
    opened: list[tuple[int, Path]] = []
    for job_file in jobs_dir.glob(f"{pattern}/*/{JOB_FILE}"):
        folder = job_file.parent
        with contextlib.suppress(FileNotFoundError):
            if not (folder / RESULT_FILE).exists() and not (folder / CANCEL_FILE).exists():
                opened.append((job_file.stat().st_mtime_ns, folder))
    yield from (folder for _, folder in sorted(opened))


def _is_given_up(job_dir: Path) -> bool:
    return (job_dir / CANCEL_FILE).exists() or not (job_dir / JOB_FILE).exists()


def _beat(jobs_dir: Path, heartbeat: Heartbeat) -> None:
    try:
        write_heartbeat(jobs_dir, heartbeat)
    except OSError as error:
        # A full disk must not end the jobs that are under way; the agent says itself that no heartbeat comes.
        _log.warning("no heartbeat written: %s", error.strerror)
