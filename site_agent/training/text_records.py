"""Records of the tasks on text: what each task needs of a row, and a sequence of records that stays on disk.

A dataset is looked at once: every row is checked, and of each only where it lies, whom it counts as and on which side
of the split it falls is kept, 24 bytes a row. Records are read again when they are drawn, so that memory does not grow
with the file. Knows no tensor.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from site_agent.training.errors import (
    DatasetChangedError,
    DatasetEmptyError,
    DatasetFormatUnknownError,
    DatasetMalformedError,
    DatasetMissingError,
)
from site_agent.training.rows.csv_table import CsvFile
from site_agent.training.rows.jsonl import JsonlFile
from site_agent.training.rows.parquet import ParquetFile
from site_agent.training.rows.row import ROW_FAULTS, RowFault, RowFile

_SPLIT_DOMAIN = "wardround/split/"

ROW_FILES: Mapping[str, Callable[[Path], RowFile]] = {"jsonl": JsonlFile, "csv": CsvFile, "parquet": ParquetFile}
"""The formats that text records are read from."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TextRecord:
    """What all records have. Safety: its repr shows nothing of it. Invariant: no text is blank."""

    record_id: str
    patient_id: str | None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return f"{type(self).__name__}(...)"

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        return self.record_id if self.patient_id is None else self.patient_id

    @property
    def split_hash(self) -> int:
        """uint64, uniform over persons: SHA-256 of the person's key, first eight bytes, big-endian."""
        return int.from_bytes(hashlib.sha256((_SPLIT_DOMAIN + self.person).encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InstructionRecord(TextRecord):
    """A question and its answer."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PreferenceRecord(TextRecord):
    """A question and two answers, of which the first is the better one."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlainTextRecord(TextRecord):
    """A text."""

    text: str


SomeRecord = TypeVar("SomeRecord", bound=TextRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordShape(Generic[SomeRecord]):
    """What a task needs of a row: a text under each of these names, beside ``id`` and the patient's field.

    Attributes:
        make: takes ``record_id``, ``patient_id`` and the texts by their names.
    """

    texts: tuple[str, ...]
    make: Callable[..., SomeRecord]

    def record_from_row(self, values: Mapping[str, object], number: int, patient_field: str) -> SomeRecord:
        """Read one row.

        Raises:
            DatasetMalformedError: a field is missing, blank or no text; the facts name the row and the field.
        """
        patient_id = values.get(patient_field)
        return self.make(
            record_id=text_of(values.get("id"), "id", number),
            patient_id=None if patient_id is None else text_of(patient_id, patient_field, number),
            **{name: text_of(values.get(name), name, number) for name in self.texts},
        )


INSTRUCTIONS = RecordShape(texts=("prompt", "completion"), make=InstructionRecord)
PREFERENCES = RecordShape(texts=("prompt", "chosen", "rejected"), make=PreferenceRecord)
PLAIN_TEXTS = RecordShape(texts=("text",), make=PlainTextRecord)

RECORD_SHAPES: tuple[RecordShape[InstructionRecord] | RecordShape[PreferenceRecord] | RecordShape[PlainTextRecord], ...]
RECORD_SHAPES = (INSTRUCTIONS, PREFERENCES, PLAIN_TEXTS)
"""All shapes; a file whose task is not known yet is judged by the first one that fits its first row."""


class RecordsOnDisk(Sequence[SomeRecord], Generic[SomeRecord]):
    """The records of a file, each read when it is asked for. Invariant: each was well formed when it was looked at.

    Attributes:
        split_hashes: uint64, shape (n,): each record's ``split_hash``.
        n_patients: distinct persons, told apart by hashes of 64 bits: among a million persons, two count as one with
            a chance of about one in 37 million.
    """

    def __init__(
        self,
        rows: RowFile,
        shape: RecordShape[SomeRecord],
        *,
        patient_field: str,
        places: NDArray[np.int64],
        split_hashes: NDArray[np.uint64],
        n_patients: int,
    ) -> None:
        """Keep what ``index_records`` found."""
        self._rows = rows
        self._shape = shape
        self._patient_field = patient_field
        self._places = places
        self.split_hashes = split_hashes
        self.n_patients = n_patients

    def __repr__(self) -> str:
        """The count alone."""
        return f"RecordsOnDisk({len(self)})"

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> SomeRecord: ...

    @overload
    def __getitem__(self, place: slice) -> ChosenRecords[SomeRecord]: ...

    def __getitem__(self, place: int | slice) -> SomeRecord | ChosenRecords[SomeRecord]:
        """One record, read now; or a part of them, read later.

        Raises:
            DatasetChangedError: the file is another one now.
            DatasetMissingError: it cannot be read any more.
        """
        if isinstance(place, slice):
            return ChosenRecords(self, np.arange(len(self), dtype=np.int64)[place])
        index = range(len(self))[place]
        try:
            values = self._rows.read(int(self._places[index]))
            record = self._shape.record_from_row(values, index + 1, self._patient_field)
        except OSError as error:
            raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
        except DatasetMalformedError:
            raise _changed() from None
        if record.split_hash != self.split_hashes[index]:
            # Another person's record here would put a patient on both sides of the split.
            raise _changed()
        return record


class ChosenRecords(Sequence[SomeRecord], Generic[SomeRecord]):
    """Some of the records of a file, in an order of their own, each read when it is asked for."""

    def __init__(self, records: Sequence[SomeRecord], places: NDArray[np.int64]) -> None:
        """Keep which ones: int64, shape (n,), places in ``records``."""
        self._records = records
        self._places = places

    def __repr__(self) -> str:
        """The count alone."""
        return f"ChosenRecords({len(self)})"

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> SomeRecord: ...

    @overload
    def __getitem__(self, place: slice) -> ChosenRecords[SomeRecord]: ...

    def __getitem__(self, place: int | slice) -> SomeRecord | ChosenRecords[SomeRecord]:
        """One record, or a part of them.

        Raises:
            DatasetError: as ``RecordsOnDisk``.
        """
        if isinstance(place, slice):
            return ChosenRecords(self._records, self._places[place])
        return self._records[int(self._places[place])]


def index_records(
    path: Path, data_format: str, shape: RecordShape[SomeRecord], *, patient_field: str
) -> tuple[RecordsOnDisk[SomeRecord], str]:
    """Look at a whole file; its records and the SHA-256 of its bytes.

    Raises:
        DatasetFormatUnknownError: text records are not read from this format.
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: a record is not what the shape says; the facts name its row and field.
        LibraryMissingError: the format needs a library that is not installed.
    """
    rows = open_rows(path, data_format)
    digest = hashlib.sha256()
    places, split_hashes, persons = array("q"), array("Q"), array("Q")
    try:
        for row in rows.look(digest):
            if isinstance(row.values, RowFault):
                raise DatasetMalformedError(ROW_FAULTS[row.values], record=row.number)
            record = shape.record_from_row(row.values, row.number, patient_field)
            places.append(row.place)
            split_hashes.append(record.split_hash)
            persons.append(_person_key(record))
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    if not places:
        raise DatasetEmptyError("the dataset holds no record")
    records = RecordsOnDisk(
        rows,
        shape,
        patient_field=patient_field,
        places=np.frombuffer(places, dtype=np.int64),
        split_hashes=np.frombuffer(split_hashes, dtype=np.uint64),
        n_patients=len(np.unique(np.frombuffer(persons, dtype=np.uint64))),
    )
    return records, digest.hexdigest()


def open_rows(path: Path, data_format: str) -> RowFile:
    """The rows of a file.

    Raises:
        DatasetFormatUnknownError: text records are not read from this format.
    """
    open_file = ROW_FILES.get(data_format)
    if open_file is None:
        raise DatasetFormatUnknownError("this trainer cannot read the dataset's format", format=data_format[:40])
    return open_file(path)


def text_of(value: object, field: str, number: int) -> str:
    """A field that must hold a text that is not blank.

    Raises:
        DatasetMalformedError: it does not; the facts name the row and the field, and nothing of the value.
    """
    if value is None:
        raise DatasetMalformedError("a field of a record is missing", record=number, field=field)
    if not isinstance(value, str):
        raise DatasetMalformedError("a field of a record is not text", record=number, field=field)
    if not value.strip():
        raise DatasetMalformedError("a field of a record is blank", record=number, field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DatasetMalformedError("a field of a record is not valid Unicode", record=number, field=field) from None
    return value


def places_of_split(
    split_hashes: NDArray[np.uint64],
    record_id_at: Callable[[int], str],
    *,
    holdout_fraction: float,
    max_records: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which records are trained on, in file order, and which are held out, by hash and then by id.

    Only the ids of records whose hash is among the ``max_records`` lowest are asked for: memory stays bounded.

    Returns:
        Two int64 vectors of places. A held-out record beyond ``max_records`` is in neither.
    """
    limit = int(holdout_fraction * 2**64)
    is_held_out = split_hashes < np.uint64(limit) if limit else np.zeros(len(split_hashes), dtype=np.bool_)
    training = np.flatnonzero(~is_held_out).astype(np.int64)
    held_out = np.flatnonzero(is_held_out).astype(np.int64)
    if len(held_out) > max_records:
        highest = np.partition(split_hashes[held_out], max_records - 1)[max_records - 1]
        held_out = held_out[split_hashes[held_out] <= highest]
    ordered = sorted(held_out.tolist(), key=lambda place: (int(split_hashes[place]), record_id_at(place)))
    return training, np.array(ordered[:max_records], dtype=np.int64)


def _person_key(record: TextRecord) -> int:
    """uint64: equal exactly for records of the same person, but for collisions; a record of its own is no patient."""
    kind = b"record/" if record.patient_id is None else b"patient/"
    return int.from_bytes(hashlib.blake2b(kind + record.person.encode(), digest_size=8).digest(), "big")


def _changed() -> DatasetChangedError:
    return DatasetChangedError("the data file changed while it was used; register it again")
