"""The records of a file, which stay in the file: looked at once, and each read again when it is drawn.

Every row is checked in the look, and of each only where it lies, whom it counts as and on which side of the split it
falls is kept, 24 bytes a row: memory does not grow with what the records say. Knows no tensor.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from site_agent.training.data import ChosenRecords, Dataset, RecordIndex, split_hash
from site_agent.training.errors import (
    DatasetChangedError,
    DatasetEmptyError,
    DatasetMalformedError,
    DatasetMissingError,
)
from site_agent.training.rows.row import ROW_FAULTS, Row, RowFault, RowFile
from site_agent.training.text_records import RecordShape, TextRecord


class RecordsOnDisk(Sequence[TextRecord]):
    """The records of a file, each read when it is asked for. Invariant: each was well formed when it was looked at."""

    def __init__(
        self,
        rows: RowFile,
        shape: RecordShape[TextRecord],
        *,
        patient_field: str,
        places: NDArray[np.int64],
        split_hashes: NDArray[np.uint64],
    ) -> None:
        """Keep what ``read_dataset`` found: int64 and uint64, shape (n,)."""
        self._rows = rows
        self._shape = shape
        self._patient_field = patient_field
        self._places = places
        self._split_hashes = split_hashes

    def __repr__(self) -> str:
        """The count alone."""
        return f"RecordsOnDisk({len(self)})"

    def __len__(self) -> int:
        """How many records there are."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> TextRecord: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[TextRecord]: ...

    def __getitem__(self, place: int | slice) -> TextRecord | Sequence[TextRecord]:
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
        if split_hash(record) != self._split_hashes[index]:
            # Another person's record here would put a patient on both sides of the split.
            raise _changed()
        return record


def read_dataset(rows: RowFile, shape: RecordShape[TextRecord], *, patient_field: str) -> Dataset:
    """Look at a whole file, of whose records none is kept.

    Distinct persons are told apart by hashes of 64 bits: among a million of them, two count as one with a chance of
    about one in 37 million.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: a record is not what the shape says; the facts name file, row and field.
        LibraryMissingError: the format needs a library that is not installed.
    """
    digest = hashlib.sha256()
    places, split_hashes, persons = array("q"), array("Q"), array("Q")
    try:
        for row in rows.look(digest):
            record = _record_from_row(row, shape, patient_field)
            places.append(row.place)
            split_hashes.append(split_hash(record))
            persons.append(_person_key(record))
    except DatasetMalformedError as error:
        error.facts["file"] = rows.path.name
        raise
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error
    if not places:
        raise DatasetEmptyError("the dataset holds no record")
    index = RecordIndex(
        split_hashes=np.frombuffer(split_hashes, dtype=np.uint64),
        n_patients=len(np.unique(np.frombuffer(persons, dtype=np.uint64))),
    )
    records = RecordsOnDisk(
        rows,
        shape,
        patient_field=patient_field,
        places=np.frombuffer(places, dtype=np.int64),
        split_hashes=index.split_hashes,
    )
    return Dataset(records=records, sha256=digest.hexdigest(), index=index)


def _record_from_row(row: Row, shape: RecordShape[TextRecord], patient_field: str) -> TextRecord:
    if isinstance(row.values, RowFault):
        raise DatasetMalformedError(ROW_FAULTS[row.values], record=row.number)
    return shape.record_from_row(row.values, row.number, patient_field)


def _person_key(record: TextRecord) -> int:
    """uint64: equal exactly for records of the same person, but for collisions; a record of its own is no patient."""
    kind = b"record/" if record.patient_id is None else b"patient/"
    return int.from_bytes(hashlib.blake2b(kind + record.person.encode(), digest_size=8).digest(), "big")


def _changed() -> DatasetChangedError:
    return DatasetChangedError("the data file changed while it was used; register it again")
