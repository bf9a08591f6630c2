"""How far a table is and how long the rest takes: estimated from the seconds that steps and records took so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

_SAY_EVERY_S = 10.0
_DRAW_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done: optimiser steps, and records that are evaluated."""

    steps: int
    records: int

    def __add__(self, other: Work) -> Work:
        return Work(steps=self.steps + other.steps, records=self.records + other.records)

    def __sub__(self, other: Work) -> Work:
        return Work(steps=max(0, self.steps - other.steps), records=max(0, self.records - other.records))


NO_WORK = Work(steps=0, records=0)


@dataclass(slots=True, kw_only=True)
class Pace:
    """Seconds that steps and records took. Pure.

    Attributes:
        records_a_step: of one optimiser step. While one kind's pace is unknown, a step is taken as three times the
            work of evaluating its records: a backward pass costs about two forward ones.
    """

    records_a_step: int = 1
    done: Work = NO_WORK
    step_s: float = 0.0
    record_s: float = 0.0

    def observe(self, work: Work, seconds: float) -> None:
        """Count work of one kind."""
        self.done += work
        if work.steps:
            self.step_s += seconds
        else:
            self.record_s += seconds

    def time_left(self, rest: Work) -> float | None:
        """Seconds for the rest; None before anything is known."""
        if not self.done.steps and not self.done.records:
            return None
        per_step = 3 * self.records_a_step
        a_step = self.step_s / self.done.steps if self.done.steps else per_step * self.record_s / self.done.records
        a_record = self.record_s / self.done.records if self.done.records else a_step / per_step
        return rest.steps * a_step + rest.records * a_record


class TableProgress:
    """Says on stderr which cell is being filled, how far it is, and the time left for all."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``stream``, else stderr: a terminal is drawn over, anything else gets a line now and then."""
        self._stream = stream or sys.stderr
        self._clock = clock
        self._pace = Pace()
        self._rest = NO_WORK
        self._cell = ""
        self._drawn_at = 0.0
        self._width = 0

    @property
    def pace(self) -> Pace:
        """What was measured."""
        return self._pace

    def begin(self, total: Work, *, records_a_step: int) -> None:
        """So much is to be done in all."""
        self._rest = total
        self._pace.records_a_step = records_a_step

    def cell(self, sentence: str) -> None:
        """Another cell begins."""
        self._cell = sentence
        self._say(f"{sentence}{self._left()}", stays=not self._stream.isatty())

    def did(self, work: Work, seconds: float, *, what: str) -> None:
        """A piece of work was done."""
        self._pace.observe(work, seconds)
        self._rest -= work
        every = _DRAW_EVERY_S if self._stream.isatty() else _SAY_EVERY_S
        if self._clock() - self._drawn_at >= every:
            self._say(f"{self._cell}: {what}{self._left()}", stays=not self._stream.isatty())

    def say(self, sentence: str) -> None:
        """A sentence that stays."""
        self._say(sentence, stays=True)

    def _left(self) -> str:
        seconds = self._pace.time_left(self._rest)
        return "" if seconds is None else f"; about {duration_text(seconds)} left"

    def _say(self, sentence: str, *, stays: bool) -> None:
        self._drawn_at = self._clock()
        if not self._stream.isatty():
            self._stream.write(f"  {sentence}\n")
        else:
            self._stream.write("\r" + sentence.ljust(self._width) + ("\n" if stays else ""))
            self._width = 0 if stays else len(sentence)
        self._stream.flush()


def duration_text(seconds: float) -> str:
    """A duration for people, whole seconds, minutes or hours."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
