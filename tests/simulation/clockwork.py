"""Time that only an operation moves: one manual clock, and an event loop that runs on it without threads or waiting.

Every party of a simulation shares the loop. What a party would do in a thread is done in the loop's own thread, in one
piece, and its outcome arrives a turn of the loop later, so that tasks interleave where they would, in the same order
each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from tests.simulation.processes import PowerCutError

T = TypeVar("T")

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
_MOST_TURNS = 100_000


class StuckError(AssertionError):
    """The loop does not come to rest: something waits in a circle."""


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed_s)


class _NothingArrives(selectors.BaseSelector):
    """No file and no socket is ever ready: the loop neither waits nor hears of anything outside."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        del timeout
        return []

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return {}


class ClockworkLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the manual clock's, and whose threads are its own."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(_NothingArrives())
        self._manual = clock
        self.set_exception_handler(self._note_lost)
        self.lost: list[str] = []

    def time(self) -> float:
        return self._manual.elapsed_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        del executor
        arrived: asyncio.Future[T] = self.create_future()
        try:
            outcome = func(*args)
        except BaseException as error:  # noqa: BLE001 # it is raised where the thread is awaited
            self.call_soon(_fail, arrived, error)
        else:
            self.call_soon(_arrive, arrived, outcome)
        return arrived

    def run_ready(self) -> None:
        """Run until everybody waits: for the time, for an operation, or for nobody."""
        for _ in range(_MOST_TURNS):
            if not self._ready and not self._is_due():
                return
            self._run_once()
        raise StuckError("the tasks of the simulation call each other without end")

    def next_timer_s(self) -> float | None:
        """When the first timer is due, on the manual clock; None where nobody waits for the time."""
        due = [handle.when() for handle in self._scheduled if not handle.cancelled()]
        return min(due, default=None)

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one piece of work to its end; it must not wait for the time to pass."""
        task = self.create_task(work)
        self.run_ready()
        if not task.done():
            task.cancel()
            self.run_ready()
            raise StuckError("an operation waits for time that does not pass")
        return task.result()

    def _is_due(self) -> bool:
        while self._scheduled and self._scheduled[0].cancelled():
            self._run_once()
            if self._ready:
                return True
        return bool(self._scheduled) and self._scheduled[0].when() <= self.time()

    def _note_lost(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        if isinstance(context.get("exception"), PowerCutError):
            return
        self.lost.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run_as_current(self, call: Callable[[], None]) -> None:
        """Let ``call`` find this loop as the running one."""
        asyncio.events._set_running_loop(self)
        try:
            call()
        finally:
            asyncio.events._set_running_loop(None)

    def _run_once(self) -> None:
        self.run_as_current(super()._run_once)  # type: ignore[misc]


def _arrive(future: asyncio.Future[T], outcome: T) -> None:
    if not future.done():
        future.set_result(outcome)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


class InlineExecutor(Executor):
    """Stands in for a pool of threads whose pieces of work touch nothing in common: does each at once."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        del max_workers, thread_name_prefix

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 # raised by result(), as a thread's is
            done.set_exception(error)
        return done
