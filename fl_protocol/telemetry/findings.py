"""What a check of either side's ``doctor`` says: one fact about a machine, and what to do where it is wrong.

A check is a row: its name, what it looks at, and every outcome that it may have, each with a code that never changes.
The page ``docs/operating/doctor.md`` is made of these rows. What a check finds by an error of another room has that
error's code and advice instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from fl_protocol.errors import Fact, WardroundError

SceneT = TypeVar("SceneT")
"""What a side's checks look at."""


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """A fact that nobody has to act on."""
    WARNING = "warning"
    """It works; something should be looked at."""
    FAILED = "failed"
    """It does not work, or not safely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One thing that a check may find.

    Attributes:
        code: stable, for programs.
        means: one sentence for the page of the checks.
        advice: what to do; empty where nothing has to be done.
    """

    code: str
    health: Health
    means: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check found. Invariant: whoever is told of a failure is told what to do."""

    name: str
    code: str
    health: Health
    message: str
    advice: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.health in {Health.WARNING, Health.FAILED} and not self.advice:
            message = f"the check {self.name} says {self.code} without advice"
            raise ValueError(message)

    def document(self) -> Mapping[str, object]:
        """What ``--json`` says."""
        return {
            "name": self.name,
            "code": self.code,
            "health": self.health.value,
            "message": self.message,
            "advice": self.advice,
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[SceneT]):
    """One row of a side's table of checks."""

    name: str
    family: str
    looks_at: str
    outcomes: tuple[Outcome, ...]
    run: Callable[[SceneT], Iterable[CheckResult]]


def found(name: str, outcome: Outcome, message: str, *, advice: str | None = None, **facts: Fact) -> CheckResult:
    """A result of a check; its advice is the outcome's, unless the case has better."""
    return CheckResult(
        name=name,
        code=outcome.code,
        health=outcome.health,
        message=message,
        advice=outcome.advice if advice is None else advice,
        facts=facts,
    )


def failed_by(name: str, error: WardroundError, *, health: Health = Health.FAILED) -> CheckResult:
    """A check that another room's error ended: its code, its sentence, its advice."""
    advice = str(getattr(error, "advice", "") or "") or "Mend what the sentence names, then ask again."
    # Some errors say their advice in the sentence already.
    message = str(error).replace(f". {advice}", "")
    return CheckResult(name=name, code=error.code, health=health, message=message, advice=advice)


_MARKS = {Health.OK: "ok", Health.NOTE: "note", Health.WARNING: "LOOK", Health.FAILED: "MEND"}


def page(results: Iterable[CheckResult]) -> Iterator[str]:
    """What was found, and below it what to do, told once: each on one line, which no terminal cuts into columns."""
    told: set[str] = set()
    for result in results:
        yield f"{_MARKS[result.health]:<5} {result.name}: {result.message} [{result.code}]"
        if result.advice and result.advice not in told:
            told.add(result.advice)
            yield f"      -> {result.advice}"


def verdict(results: Sequence[CheckResult], *, well: str) -> str:
    """The last line: what is left to do, or that all is well, in the side's own words."""
    n_failed = sum(result.health is Health.FAILED for result in results)
    n_warned = sum(result.health is Health.WARNING for result in results)
    looked = f" {n_warned} to look at." if n_warned else ""
    return f"{n_failed} to mend, from the top.{looked}" if n_failed else f"{well}{looked}"
