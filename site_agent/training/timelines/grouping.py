"""Rows in any order become one history a patient, whatever the size of the files: an external merge sort.

At most ``max_rows_in_memory`` rows are held. When so many are there they are sorted and written to a file of their own;
at the end those files are merged, and rows of one patient stand beside each other. The files lie in a folder that only
this user may enter, and go when the generator ends, however it ends.

Memory is bounded by the rows held, one buffer a file, and the history of one patient.
"""

from __future__ import annotations

import heapq
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from site_agent.training.timelines.rows import Event, Person, Row, RowFault, RowFaultKind, Sex

MAX_ROWS_IN_MEMORY = 250_000
_MAX_FILES = 64
"""When so many files are there they are merged into one: each costs an open file and a buffer."""

_PERSON, _EVENT = 0, 1
SortRow = tuple[str, int, int, int | str, str, int | str]
"""(patient, _PERSON, birth day or -1, sex, file, place) or (patient, _EVENT, day, second, source, code).

The kind stands before everything that differs in type, so any two can be compared.
"""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatientHistory:
    """Everything of one patient, events in the order of ``Event``; an event that is there twice is there twice."""

    patient_id: str
    person: Person
    events: tuple[Event, ...]

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "PatientHistory(...)"


def group_by_patient(
    rows: Iterable[Row], *, max_rows_in_memory: int = MAX_ROWS_IN_MEMORY, folder: Path | None = None
) -> Iterator[PatientHistory]:
    """One history a patient, in the order of the patients' keys. What comes does not depend on the order of rows.

    Args:
        rows: of one dataset.
        max_rows_in_memory: at least 1.
        folder: where files are put for the time being; None: the system's place.

    Raises:
        DatasetMalformedError: two rows say different things of one person; the facts name the later file and place.
    """
    with tempfile.TemporaryDirectory(prefix="timelines-", dir=folder) as name:
        spill = _Spill(Path(name))
        held: list[SortRow] = []
        for row in rows:
            held.extend(_sort_rows(row))
            if len(held) >= max_rows_in_memory:
                held.sort()
                spill.write(held)
                held.clear()
        held.sort()
        merged = heapq.merge(*spill.read_all(), held)
        for patient_id, group in itertools.groupby(merged, key=lambda item: item[0]):
            yield _history(patient_id, group)


class _Spill:
    """Sorted files in a folder. Invariant: at most ``_MAX_FILES`` of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[Path] = []
        self._n_written = 0

    def write(self, ordered: Iterable[SortRow]) -> None:
        """Add a file of rows that are in order."""
        path = self._folder / f"{self._n_written}.jsonl"
        self._n_written += 1
        with path.open("w", encoding="utf-8") as file:
            for row in ordered:
                file.write(json.dumps(row) + "\n")
        self._files.append(path)
        if len(self._files) > _MAX_FILES:
            merged, self._files = self._files, []
            self.write(heapq.merge(*(_read(path) for path in merged)))
            for path in merged:
                path.unlink()

    def read_all(self) -> list[Iterator[SortRow]]:
        """Each file's rows."""
        return [_read(path) for path in self._files]


def _read(path: Path) -> Iterator[SortRow]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield tuple(json.loads(line))


def _sort_rows(row: Row) -> Iterator[SortRow]:
    if row.person is not None:
        birth = -1 if row.person.birth_day is None else row.person.birth_day
        sex = "" if row.person.sex is None else row.person.sex.value
        yield (row.patient_id, _PERSON, birth, sex, row.file, row.place)
    if row.event is not None:
        event = row.event
        yield (row.patient_id, _EVENT, event.day, event.second, event.source, event.code)


def _history(patient_id: str, group: Iterable[SortRow]) -> PatientHistory:
    birth_day: int | None = None
    sex: Sex | None = None
    events: list[Event] = []
    for _, kind, first, second, third, fourth in group:
        if kind == _EVENT:
            events.append(Event(day=first, second=int(second), source=third, code=str(fourth)))
            continue
        told_birth = None if first < 0 else first
        told_sex = Sex(str(second)) if second else None
        for field, before, told in (("birth_date", birth_day, told_birth), ("sex", sex, told_sex)):
            if before is not None and told is not None and before != told:
                fault = RowFault(file=third, place=int(fourth), field=field, kind=RowFaultKind.CONTRADICTS)
                raise fault.to_error()
        birth_day = birth_day if told_birth is None else told_birth
        sex = sex if told_sex is None else told_sex
    return PatientHistory(patient_id=patient_id, person=Person(birth_day=birth_day, sex=sex), events=tuple(events))
