"""A patient's events as one timeline: which of them count, and in which order. One timeline is one record.

The order is (day, second of the day, source, code): events of one instant have one order whatever the files' was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from site_agent.training.timelines.grouping import PatientHistory
from site_agent.training.timelines.rows import Person


class Occurrences(StrEnum):
    """Which of a code's events are on a timeline."""

    FIRST = "first"
    """The first only, as in MedGPT (Kraljevic et al. 2021): what comes next is then always new."""
    ALL = "all"
    """Each, but a code once a day."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Timeline:
    """One patient's codes in order. Invariant: as many days as codes, never falling. Safety: no repr.

    Attributes:
        codes: as the dataset writes them, known to a vocabulary or not.
        days: of each code, as ``Event.day``.
    """

    patient_id: str
    person: Person
    codes: tuple[str, ...]
    days: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the invariant."""
        if len(self.codes) != len(self.days):
            message = "a timeline has a day for each code"
            raise ValueError(message)

    def __repr__(self) -> str:
        """The length alone."""
        return f"Timeline({len(self.codes)} codes)"


def timeline_from_history(history: PatientHistory, occurrences: Occurrences = Occurrences.FIRST) -> Timeline:
    """The timeline of one patient; empty where there is no event."""
    seen: set[tuple[str, int]] = set()
    codes: list[str] = []
    days: list[int] = []
    for event in history.events:
        key = (event.code, event.day if occurrences is Occurrences.ALL else 0)
        if key in seen:
            continue
        seen.add(key)
        codes.append(event.code)
        days.append(event.day)
    return Timeline(patient_id=history.patient_id, person=history.person, codes=tuple(codes), days=tuple(days))


def timelines_from_histories(
    histories: Iterable[PatientHistory], occurrences: Occurrences = Occurrences.FIRST
) -> Iterator[Timeline]:
    """The timelines of all patients who have an event."""
    for history in histories:
        timeline = timeline_from_history(history, occurrences)
        if timeline.codes:
            yield timeline
