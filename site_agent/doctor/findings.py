"""What a check of ``doctor`` says: one fact about this machine, and what to do where it is wrong.

A check is a row: its name, what it looks at, and every outcome that it may have, each with a code that never changes.
The page ``docs/operating/doctor.md`` is made of these rows. What a check finds by an error of another room has that
error's code and advice instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fl_protocol.errors import Fact, WardroundError
from site_agent.doctor.scene import Scene


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"
    """A fact that nobody has to act on."""
    WARNING = "warning"
    """The site can take part; something should be looked at."""
    FAILED = "failed"
    """The site cannot take part, or not safely."""


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


Findings = Iterable[CheckResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the table of checks."""

    name: str
    family: str
    looks_at: str
    outcomes: tuple[Outcome, ...]
    run: Callable[[Scene], Findings]


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
    return CheckResult(name=name, code=error.code, health=health, message=str(error), advice=advice)
