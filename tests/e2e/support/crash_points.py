"""Where a process is to die, as a test writes it down; ``crashing.py`` carries it out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Arming:
    """A call after which a point counts."""

    target: str
    match: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    """One instruction. ``match`` names parts of the arguments: ``0`` the first, ``0.state`` an attribute of it."""

    name: str
    target: str
    match: Mapping[str, str] = field(default_factory=dict)
    nth: int = 1
    when: str = "before"
    armed_by: Arming | None = None

    def to_document(self) -> dict[str, object]:
        armed_by = self.armed_by
        return {
            "name": self.name,
            "target": self.target,
            "match": dict(self.match),
            "nth": self.nth,
            "when": self.when,
            "armed_by": None if armed_by is None else {"target": armed_by.target, "match": dict(armed_by.match)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPlan:
    """The points of one process, and the file that tells it."""

    file: Path
    points: tuple[CrashPoint, ...]

    @classmethod
    def write(cls, file: Path, points: Iterable[CrashPoint]) -> CrashPlan:
        plan = cls(file=file, points=tuple(points))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([point.to_document() for point in plan.points]))
        return plan

    def missed(self) -> list[str]:
        """The points at which nothing died."""
        marks = self.file.with_suffix("")
        return [point.name for point in self.points if not (marks / point.name).exists()]
