"""One measured row: what was measured, its yardstick from the same run, and their ratio; printed as a table or JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

_LOOP_TURNS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measurement.

    Attributes:
        name: what was measured, with its size.
        value: the figure, in ``unit``.
        yardstick: the figure to compare with, in the same unit; a limit or a bare loop timed in the same run.
        ratio: yardstick / value where smaller is better, so that 1 is on par and more is better; None without one.
        within: whether the stated aim is met; None where there is no aim.
    """

    name: str
    value: float
    unit: str
    yardstick: float | None = None
    yardstick_name: str = ""
    ratio: float | None = None
    within: bool | None = None


def best_of(n_trials: int, measure: Callable[[], float]) -> float:
    """The smallest of several measurements: on a shared machine the others measure the neighbours."""
    return min(measure() for _ in range(n_trials))


def announce(what: str) -> None:
    """Say on stderr what is being measured, since some rows take a minute."""
    sys.stderr.write(f"  {what} ...\n")
    sys.stderr.flush()


def print_rows(rows: list[Row], *, as_json: bool) -> None:
    """Print the rows, and on what they were measured."""
    machine = {
        **machine_document(),
        "numpy": version("numpy"),
        "cryptography": version("cryptography"),
        "python_loop_ns": round(_loop_ns(), 1),
        "load": round(os.getloadavg()[0], 1),
    }
    if as_json:
        print(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    width = max(len(row.name) for row in rows)
    print(f"{'measure':{width}}  {'figure':>12}  {'yardstick':>12}  {'ratio':>6}  aim")
    for row in rows:
        yardstick = "" if row.yardstick is None else f"{row.yardstick:.4g} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        aim = {None: "", True: "met", False: "MISSED"}[row.within]
        figure = f"{row.value:.4g} {row.unit}"
        cells = [f"{row.name:{width}}", f"{figure:>12}", f"{yardstick:>12}", f"{ratio:>6}", f"{aim:6}"]
        cells.append(row.yardstick_name)
        print("  ".join(cells).rstrip())
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))


def machine_document() -> dict[str, object]:
    """What computes here."""
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}


def _loop_ns() -> float:
    """Nanoseconds of one turn of a plain loop: machines of one name differ by a factor of two in it."""

    def turn() -> float:
        began, total = time.thread_time_ns(), 0
        for number in range(_LOOP_TURNS):
            total += number * number % 7
        return (time.thread_time_ns() - began) / _LOOP_TURNS

    return best_of(5, turn)


def _cpu_name() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a file of the system, not of ours
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
