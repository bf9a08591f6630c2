"""A trainer of several processes: a team of workers that stays up between jobs, and the one who hands them out.

The hander-out watches the spool, as a trainer of one process does, and holds no model. Each job goes to all workers;
when all have done it, the first one's result closes the job. torch's launcher starts the workers and ends them: all of
them when one dies, and when the hander-out is gone.

A worker that fails alone leaves the others waiting for it, so after any failure the team ends, and is started again
for the next job. A worker that dies takes the whole trainer with it, which ends as that worker did: whoever started the
trainer starts it again, and the job goes on from its checkpoint. Knows no task.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from site_agent.jobs.job_dir import JobFailure, JobResult
from site_agent.training.errors import DeviceUnavailableError, TrainerError, UnexpectedFailureError
from site_agent.training.outcomes import write_outcome
from site_agent.training.progress import TrainerStopped
from site_agent.training.serve import JobCloser

WORKERS_FOLDER = ".workers"
"""In a spool: the copies of the job's folder that all but the first worker write into. Deleted with the job."""

_LOOK_EVERY_S = 0.05
_OTHERS_END_WITHIN_S = 10.0
"""How long workers may go on after one of them has failed: as a rule they fail for the same reason."""
_SIGNAL_CODES = 128

_log = logging.getLogger(__name__)


class WorkerDiedError(TrainerError):
    """A worker ended in the middle of its work, most often because memory ran out."""

    code = "worker-died"
    advice = "See trainer.log. A process that was killed had most often no memory left: see runner.processes."

    def __init__(self, *, exit_code: int) -> None:
        """Keep how it ended, as a shell says it: 137 for one that was killed."""
        super().__init__("one of the trainer's processes died", exit_code=exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What all workers of a team are told when they are started.

    Attributes:
        n_workers: how many there are.
        store: the file through which they find each other.
        checkpoint_every_s: the shortest time between two checkpoints.
    """

    n_workers: int
    store: Path
    checkpoint_every_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """The answer of a worker that had nothing to do."""


WorkerAnswer = JobResult | JobFailure | Idle


@contextmanager
def job_closer(
    *, processes: int | None, checkpoint_every_s: float, should_stop: Callable[[], bool]
) -> Iterator[JobCloser]:
    """What does the jobs of a trainer: this process, or a team of workers that is up as long as the context.

    Args:
        processes: how many do a job together; None for as many as there are GPUs, at least one.
        checkpoint_every_s: the shortest time between two checkpoints.
        should_stop: whether to give up starting.

    Raises:
        WorkerDiedError: a worker ended before it was ready.
        TrainerStopped: ``should_stop`` said so.
    """
    n_gpus = _n_gpus() if processes != 1 else 0
    n_workers = max(1, n_gpus) if processes is None else processes
    if n_workers == 1:
        yield _alone(checkpoint_every_s)
    elif 0 < n_gpus < n_workers:
        yield _refuser(n_workers, n_gpus)
    else:
        team = WorkerTeam(n_workers, checkpoint_every_s=checkpoint_every_s)
        try:
            team.start(should_stop)
            yield team.close_job
        finally:
            team.end()


def _n_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _alone(checkpoint_every_s: float) -> JobCloser:
    from site_agent.training.closing import close_job
    from site_agent.training.shelf import ModelShelf

    shelf = ModelShelf()

    def close(job_dir: Path, should_stop: Callable[[], bool]) -> None:
        close_job(job_dir, shelf=shelf, should_stop=should_stop, checkpoint_every_s=checkpoint_every_s)

    return close


def _refuser(n_workers: int, n_gpus: int) -> JobCloser:
    failure = JobFailure(
        code=DeviceUnavailableError.code,
        message=f"each of {n_workers} processes needs a GPU of its own, and this trainer sees {n_gpus}",
        advice="Set runner.processes to auto, or to no more than there are GPUs.",
        facts={"processes": n_workers, "gpus": n_gpus},
    )

    def close(job_dir: Path, should_stop: Callable[[], bool]) -> None:
        _ = should_stop
        write_outcome(job_dir, failure, started=time.monotonic())

    return close


class WorkerTeam:
    """Workers that do one job at a time together. Invariant: all of them run, or none does."""

    def __init__(self, n_workers: int, *, checkpoint_every_s: float) -> None:
        """Nothing is started yet."""
        self._n_workers = n_workers
        self._checkpoint_every_s = checkpoint_every_s
        self._up: _Up | None = None

    def start(self, should_stop: Callable[[], bool]) -> None:
        """Start the workers unless they run, and wait until they have found each other.

        Raises:
            WorkerDiedError: one of them has not.
            TrainerStopped: ``should_stop`` said so.
        """
        if self._up is not None:
            return
        self._up = _Up(self._n_workers, checkpoint_every_s=self._checkpoint_every_s)
        self._collect(should_stop)

    def close_job(self, job_dir: Path, should_stop: Callable[[], bool]) -> None:
        """Do the job of a folder and write ``result.json``.

        Raises:
            WorkerDiedError: the job stays open.
            TrainerStopped: the trainer is to end; the job stays open.
            FileNotFoundError: the agent has deleted the folder.
        """
        started = time.monotonic()
        self.start(should_stop)
        assert self._up is not None, "it was just started"
        copies = job_dir.parent / WORKERS_FOLDER
        # What a trainer that was killed left there.
        shutil.rmtree(copies, ignore_errors=True)
        try:
            folders = [job_dir, *(_copy(job_dir, copies / str(rank)) for rank in range(1, self._n_workers))]
            self._up.hand_out(folders)
            outcomes = self._collect(should_stop)
        finally:
            shutil.rmtree(copies, ignore_errors=True)
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, JobFailure)]
        if failures:
            # Who failed for a reason of its own says more than who was left waiting.
            failures.sort(key=lambda failure: failure.code == UnexpectedFailureError.code)
            self.end()
            write_outcome(job_dir, failures[0], started=started)
            return
        first = outcomes[0]
        assert isinstance(first, JobResult), "the first worker has a part in every job"
        write_outcome(job_dir, first, started=started)

    def end(self) -> None:
        """End the workers at once; what they were doing is left as it is."""
        if self._up is not None:
            self._up.kill()
            self._up = None

    def _collect(self, should_stop: Callable[[], bool]) -> dict[int, WorkerAnswer]:
        """What each worker answers, by its rank: of all, or of those that have answered soon after one failed."""
        assert self._up is not None, "only called of workers that run"
        answers: dict[int, WorkerAnswer] = {}
        deadline: float | None = None
        while len(answers) < self._n_workers and not (deadline is not None and time.monotonic() > deadline):
            if should_stop():
                self.end()
                raise TrainerStopped
            exit_code = self._up.exit_code()
            if exit_code is not None:
                self.end()
                raise WorkerDiedError(exit_code=exit_code)
            for rank, answer in self._up.answers():
                answers[rank] = answer
                if isinstance(answer, JobFailure) and deadline is None:
                    deadline = time.monotonic() + _OTHERS_END_WITHIN_S
        return answers


class _Up:
    """The processes of a team that runs."""

    def __init__(self, n_workers: int, *, checkpoint_every_s: float) -> None:
        """Start them."""
        from torch.multiprocessing.spawn import start_processes

        pipes = [multiprocessing.Pipe() for _ in range(n_workers)]
        self._ends: list[Connection] = [ours for ours, _ in pipes]
        theirs = tuple(end for _, end in pipes)
        # Safety: of this user alone. It holds addresses on the loopback, and has to be there as long as the workers.
        self._folder = tempfile.TemporaryDirectory()
        options = WorkerOptions(
            n_workers=n_workers, store=Path(self._folder.name) / "store", checkpoint_every_s=checkpoint_every_s
        )
        # Daemons: they are ended with this process, in whichever way it ends.
        context = start_processes(_work, (theirs, options), nprocs=n_workers, join=False, daemon=True)
        self._processes = context.processes
        for end in theirs:
            end.close()

    def hand_out(self, folders: Sequence[Path]) -> None:
        """Give each of them the folder in which it is to do the job."""
        for end, folder in zip(self._ends, folders, strict=True):
            # That one of them has died is noticed where its exit code is read.
            with contextlib.suppress(BrokenPipeError):
                end.send(str(folder))

    def exit_code(self) -> int | None:
        """How one of them ended, as a shell says it; None while all run."""
        codes = [process.exitcode for process in self._processes if process.exitcode is not None]
        if not codes:
            return None
        # Who was killed first takes the others with it: they end with an error of their own.
        code = min(codes)
        return _SIGNAL_CODES - code if code < 0 else max(code, 1)

    def answers(self) -> Iterator[tuple[int, WorkerAnswer]]:
        """What has come in by now, or within a moment."""
        for end in wait(self._ends, timeout=_LOOK_EVERY_S):
            assert isinstance(end, Connection), "only pipes are waited for"
            with contextlib.suppress(EOFError):
                yield self._ends.index(end), end.recv()

    def kill(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for end in self._ends:
            end.close()
        self._folder.cleanup()


def _work(rank: int, ends: Sequence[Connection], options: WorkerOptions) -> None:
    # Imported by the workers only: who hands jobs out holds no model and none of the libraries for one.
    from site_agent.training.worker import work

    work(rank, ends[rank], options)


def _copy(job_dir: Path, folder: Path) -> Path:
    """A copy of a job's folder. Raises FileNotFoundError where the agent has deleted it meanwhile."""
    folder.mkdir(parents=True, mode=0o700)
    try:
        return Path(shutil.copytree(job_dir, folder / job_dir.name))
    except shutil.Error as error:
        if job_dir.exists():
            raise
        raise FileNotFoundError(job_dir.name) from error
