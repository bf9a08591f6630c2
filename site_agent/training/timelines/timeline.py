"""A patient's events as one timeline, which is one record: each code at most once a day, in one order.

The order is (day, second of the day, source, code): events of one instant have one order whatever the files' was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from site_agent.training.timelines.grouping import PatientHistory
from site_agent.training.timelines.rows import Person


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Timeline:
    """One patient's codes in order. Invariant: as many days as codes, never falling. Safety: no repr.

    Attributes:
        demographics: what is known of the patient beside the codes.
        codes: as the dataset writes them, known to a vocabulary or not.
        days: of each code, as ``Event.day``.
    """

    patient_id: str
    demographics: Person
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

    @property
    def record_id(self) -> str:
        """One timeline a patient: the patient's key."""
        return self.patient_id

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient."""
        return self.patient_id


def timeline_from_history(history: PatientHistory) -> Timeline:
    """The timeline of one patient: each code the first time of each day; empty where there is no event."""
    first_of_day = dict.fromkeys((event.code, event.day) for event in history.events)
    return Timeline(
        patient_id=history.patient_id,
        demographics=history.person,
        codes=tuple(code for code, _ in first_of_day),
        days=tuple(day for _, day in first_of_day),
    )


def timelines_from_histories(histories: Iterable[PatientHistory]) -> Iterator[Timeline]:
    """The timelines of all patients who have an event."""
    for history in histories:
        timeline = timeline_from_history(history)
        if timeline.codes:
            yield timeline


def first_occurrences(timeline: Timeline) -> Timeline:
    """The timeline with each code the first time only, as in MedGPT: what comes next is then always new."""
    day_of: dict[str, int] = {}
    for code, day in zip(timeline.codes, timeline.days, strict=True):
        day_of.setdefault(code, day)
    return replace(timeline, codes=tuple(day_of), days=tuple(day_of.values()))
