"""The child processes of a demonstration: each in a process group of its own, with a log; all of them ended at the end.

Signals go only to groups that were started here. Calls are safe from several threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from wardround.documents import Document, document_from_text
from wardround.errors import CommandError, DemoFailedError

Result = TypeVar("Result")

N_TAIL_LINES = 15
_GRACE_S = 10.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One process that was started here and leads its own group. ``stays``: it is to run until it is stopped."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stays: bool

    def log_tail(self) -> tuple[str, ...]:
        """The last lines that it wrote."""
        return tail_of(self.log)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Streams:
    """Where a process writes; ``output`` and ``errors`` as ``Popen`` takes them."""

    log: Path
    output: int
    errors: int


class Supervisor:
    """Starts children and ends them all when it is left, however that happens.

    Invariant: after ``stop_all`` began nothing is started any more.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        """``logs``: the folder that gets one file a name."""
        self._logs = logs
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._is_stopping = False
        self._cause: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def log_of(self, name: str) -> Path:
        """Where a process of that name writes."""
        return self._logs / f"{name}.log"

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Start a process that stays; its output goes to its log."""
        log = self.log_of(name)
        with log.open("ab") as output:
            streams = _Streams(log=log, output=output.fileno(), errors=subprocess.STDOUT)
            return self._spawn(name, arguments, streams=streams, stays=True)

    def run(self, name: str, arguments: Sequence[str], *, timeout_s: float = 120.0) -> str:
        """Run a process to its end; returns its stdout, which is in the log as well.

        Raises:
            DemoFailedError: it failed or took too long; the end of its log is in the error.
        """
        log = self.log_of(name)
        with log.open("ab") as output:
            streams = _Streams(log=log, output=subprocess.PIPE, errors=output.fileno())
            child = self._spawn(name, arguments, streams=streams, stays=False)
        try:
            stdout, _ = child.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.stop(child)
            child.process.communicate()  # what is left in the pipe, which closes it
            raise DemoFailedError(
                f"{name} did not end within {timeout_s:.0f} s", log_tail=child.log_tail(), log=str(log)
            ) from error
        with log.open("ab") as output:
            output.write(stdout)
        self._forget(child)
        if child.process.returncode != 0:
            self._blame_the_cause()
            message = f"{name} failed with exit code {child.process.returncode}"
            raise DemoFailedError(message, log_tail=child.log_tail(), log=str(log))
        return stdout.decode(errors="replace")

    def run_json(self, name: str, arguments: Sequence[str], *, timeout_s: float = 120.0) -> Document:
        """Run a process whose stdout is one JSON document.

        Raises:
            DemoFailedError: it failed, took too long, or wrote something else.
        """
        text = self.run(name, arguments, timeout_s=timeout_s)
        try:
            return document_from_text(text, source=name)
        except CommandError as error:
            raise DemoFailedError(error.message, log_tail=text.splitlines()[-N_TAIL_LINES:]) from error

    def check_alive(self) -> None:
        """Notice a process that should stay and did not.

        Raises:
            DemoFailedError: one has ended.
        """
        with self._lock:
            children = tuple(child for child in self._children if child.stays)
        for child in children:
            code = child.process.poll()
            if code is not None:
                message = f"{child.name} ended by itself with exit code {code}"
                raise DemoFailedError(message, log_tail=child.log_tail(), log=str(child.log))

    def stop(self, child: Child) -> None:
        """Ask one process to end, and see to it."""
        self._forget(child)
        self._terminate(child)
        self._end(child)

    def stop_all(self, *, cause: BaseException | None = None) -> None:
        """Ask every process to end, the last started first; kill what is still there after a while.

        Args:
            cause: the failure on account of which; the first one is also what the stopped commands fail with.
        """
        with self._lock:
            self._is_stopping = True
            self._cause = self._cause or cause
            children = tuple(reversed(self._children))
            self._children.clear()
        for child in children:
            self._terminate(child)
        for child in children:
            self._end(child)

    def _blame_the_cause(self) -> None:
        """A command that ended because all were stopped is no failure of its own."""
        with self._lock:
            cause = self._cause
        if isinstance(cause, DemoFailedError):
            raise cause

    def _forget(self, child: Child) -> None:
        with self._lock:
            if child in self._children:
                self._children.remove(child)

    def _spawn(self, name: str, arguments: Sequence[str], *, streams: _Streams, stays: bool) -> Child:
        with self._lock:
            if self._is_stopping:
                raise DemoFailedError(f"{name} was not started, because the demonstration is ending")
            process = subprocess.Popen(  # noqa: S603 # programs of this package, with arguments made here
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=streams.output,
                stderr=streams.errors,
                env=self._environment,
                start_new_session=True,
            )
            child = Child(name=name, process=process, log=streams.log, stays=stays)
            self._children.append(child)
        return child

    def _terminate(self, child: Child) -> None:
        if child.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()

    def _end(self, child: Child) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=_GRACE_S)
        # Safety: the group is the child's own; whatever it left behind in it goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


def run_parallel(supervisor: Supervisor, tasks: Mapping[str, Callable[[], object]]) -> dict[str, object]:
    """Run every task in a thread of its own; returns their results by name.

    The first failure ends the demonstration: its processes are stopped, so that the other tasks end too.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
        futures: dict[str, Future[object]] = {name: pool.submit(task) for name, task in tasks.items()}
        try:
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException as error:
            supervisor.stop_all(cause=error)
            raise
        return {name: future.result() for name, future in futures.items()}


class Stage:
    """Tasks that run at the same time; what ``add`` returns gives the task's result once ``run`` is over."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tasks: dict[str, Callable[[], object]] = {}

    def add(self, name: str, task: Callable[[], Result]) -> Callable[[], Result]:
        """Take a task in; nothing runs yet."""
        results: list[Result] = []
        self._tasks[name] = lambda: results.append(task())
        return lambda: results[0]

    def run(self) -> None:
        """Run them all; see ``run_parallel``."""
        run_parallel(self._supervisor, self._tasks)


def wait_for_file(path: Path, supervisor: Supervisor, *, timeout_s: float, what: str) -> None:
    """Wait until a process has written a file.

    Raises:
        DemoFailedError: a process ended meanwhile, or it took too long.
    """
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        supervisor.check_alive()
        if time.monotonic() > deadline:
            raise DemoFailedError(f"{what} was not ready within {timeout_s:.0f} s", advice="Look into its log.")
        time.sleep(_LOOK_EVERY_S)


def tail_of(log: Path, n_lines: int = N_TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log; none where it cannot be read."""
    try:
        return tuple(log.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:])
    except OSError:
        return ()
