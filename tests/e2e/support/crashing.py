"""Any program of Wardround, with an instruction at which it kills itself: ``crashing.py PLAN MODULE WORDS...``

A composition for tests only; the product has no hook for it. ``PLAN`` is a JSON file with a list of points. A point
names a callable (``module:Class.method``), what its arguments must be, which such call is meant, and whether the
process dies before or after it. It dies by SIGKILL: nothing is flushed, closed or said. A point that was reached leaves
a mark beside the plan and is not reached again, so the same command line is the program as it is afterwards.

Knows the standard library only, so that it can stand before the trainer too.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

Call = Callable[..., object]

_TRAINER_POINTS = "site_agent.training."


class Point:
    """One instruction at which the process dies."""

    def __init__(self, document: Mapping[str, object], plan: Path) -> None:
        self.name = str(document["name"])
        self.target = str(document["target"])
        self.match = {str(key): str(value) for key, value in dict(document.get("match") or {}).items()}  # type: ignore[call-overload]
        self.n_left = int(str(document.get("nth", 1)))
        self.is_before = document.get("when", "before") == "before"
        armed_by = document.get("armed_by")
        self.armed_by = dict(armed_by) if isinstance(armed_by, dict) else None
        self.is_armed = self.armed_by is None
        self._mark = plan.with_suffix("") / self.name
        self._lock = threading.Lock()

    @property
    def was_reached(self) -> bool:
        """Whether a process died here already."""
        return self._mark.exists()

    def counts(self, arguments: tuple[object, ...], named: Mapping[str, object]) -> bool:
        """Whether this is the call that is meant."""
        if not self.is_armed or not fits(self.match, arguments, named) or self.was_reached:
            # Processes may share a plan: where another one died already, this one lives.
            return False
        with self._lock:
            self.n_left -= 1
            return self.n_left == 0

    def die(self) -> None:
        """Leave the mark, and no more."""
        self._mark.parent.mkdir(exist_ok=True)
        self._mark.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)


def fits(match: Mapping[str, str], arguments: tuple[object, ...], named: Mapping[str, object]) -> bool:
    """Whether every named part of the arguments has its value. ``0.state`` is that attribute of the first one."""
    for path, wanted in match.items():
        first, *rest = path.split(".")
        if first.isdigit():
            if int(first) >= len(arguments):
                return False
            value = arguments[int(first)]
        else:
            value = named.get(first)
        for part in rest:
            value = getattr(value, part, None)
        found = value.value if isinstance(value, Enum) else value
        if str(found) != wanted:
            return False
    return True


def replace(target: str, wrap: Callable[[Call, bool], Call]) -> None:
    """Put a wrapper around a function or method; ``wrap`` is told whether its first argument is the object.

    A function is named where it is defined. Who imported it by name already gets the wrapper too; who does so later
    finds it.
    """
    module_name, _, path = target.partition(":")
    owner: object = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    call = getattr(owner, name)
    wrapper = wrap(call, bool(outer))
    holders = (
        [owner]
        if outer
        else [module for module in sys.modules.values() if getattr(module, "__dict__", {}).get(name) is call]
    )
    for holder in holders:
        setattr(holder, name, wrapper)


def install(point: Point) -> None:
    """Arm one point."""
    if point.armed_by is not None:
        armed_by = point.armed_by
        match = {str(key): str(value) for key, value in dict(armed_by.get("match") or {}).items()}

        def arm(arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
            point.is_armed = point.is_armed or fits(match, arguments, named)

        replace(str(armed_by["target"]), lambda call, is_method: around(call, is_method, after=arm))

    def die(arguments: tuple[object, ...], named: Mapping[str, object]) -> None:
        if point.counts(arguments, named):
            point.die()

    before, after = (die, None) if point.is_before else (None, die)
    replace(point.target, lambda call, is_method: around(call, is_method, before=before, after=after))


Look = Callable[[tuple[object, ...], Mapping[str, object]], None]


def around(call: Call, is_method: bool, *, before: Look | None = None, after: Look | None = None) -> Call:
    """The same callable, with a look at its arguments before or after."""
    first = 1 if is_method else 0

    if inspect.iscoroutinefunction(call):

        @functools.wraps(call)
        async def awaited(*arguments: object, **named: object) -> object:
            if before is not None:
                before(arguments[first:], named)
            answer = await call(*arguments, **named)
            if after is not None:
                after(arguments[first:], named)
            return answer

        return awaited

    @functools.wraps(call)
    def called(*arguments: object, **named: object) -> object:
        if before is not None:
            before(arguments[first:], named)
        answer = call(*arguments, **named)
        if after is not None:
            after(arguments[first:], named)
        return answer

    return called


def start_trainers_with(plan: Path) -> None:
    """Let an agent start its trainers through this program, with the same plan."""

    def wrap(call: Call, is_method: bool) -> Call:
        del is_method

        @functools.wraps(call)
        def arguments(trainer: object) -> tuple[str, ...]:
            python, minus_m, *rest = call(trainer)  # type: ignore[misc]
            assert minus_m == "-m"
            return (python, __file__, str(plan), *rest)

        return arguments

    replace("site_agent.jobs.process:WarmTrainer._arguments", wrap)


def main() -> None:
    """Arm what the plan says for this program, then be the program."""
    plan, module, *words = sys.argv[1:]
    # This file's own folder is no place to import from.
    sys.path.pop(0)
    points = [Point(document, Path(plan)) for document in json.loads(Path(plan).read_text())]
    for point in points:
        is_of_trainer = point.target.startswith(_TRAINER_POINTS)
        if not point.was_reached and is_of_trainer == (module == "site_agent.training"):
            install(point)
    if module == "site_agent" and any(point.target.startswith(_TRAINER_POINTS) for point in points):
        start_trainers_with(Path(plan))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
