"""Records of a dataset, whatever their format: counted by patient, split by a hash. Knows neither files nor tensors.

Which records are held out is decided by a hash of the patient (of the record where no patient is named), so that it is
the same in each round, and no patient is on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

_SPLIT_DOMAIN = "wardround/split/"


class Record(Protocol):
    """What a dataset needs of a record. Safety: a record's repr shows nothing of it."""

    @property
    def record_id(self) -> str:
        """Its name within its dataset."""
        ...

    @property
    def patient_id(self) -> str | None:
        """Whose it is, where it says so."""
        ...

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        ...


def split_hash(record: Record) -> int:
    """uint64, uniform over persons: SHA-256 of the person's key, first eight bytes, big-endian."""
    return int.from_bytes(hashlib.sha256((_SPLIT_DOMAIN + record.person).encode()).digest()[:8], "big")


SomeRecord = TypeVar("SomeRecord", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordIndex:
    """What is known of records without reading them again.

    Attributes:
        split_hashes: uint64, shape (n,): each record's ``split_hash``.
        n_patients: distinct persons.
    """

    split_hashes: NDArray[np.uint64]
    n_patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All records of a file, in its order. Invariant: there is at least one.

    Attributes:
        records: in memory, or each read when it is asked for.
        sha256: of the file's bytes.
        index: of the records, where the format made one as it read them.
    """

    records: Sequence[Record]
    sha256: str
    index: RecordIndex | None = None

    @property
    def n_patients(self) -> int:
        """Distinct persons: a record without a patient counts as one of its own."""
        if self.index is not None:
            return self.index.n_patients
        return len({(record.patient_id is None, record.person) for record in self.records})

    @property
    def split_hashes(self) -> NDArray[np.uint64]:
        """uint64, shape (n,): each record's ``split_hash``."""
        if self.index is not None:
            return self.index.split_hashes
        return np.array([split_hash(record) for record in self.records], dtype=np.uint64)


class ChosenRecords(Sequence[SomeRecord]):
    """Some records of a dataset, in an order of their own, each read when it is asked for."""

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
    def __getitem__(self, place: slice) -> Sequence[SomeRecord]: ...

    def __getitem__(self, place: int | slice) -> SomeRecord | Sequence[SomeRecord]:
        """One record, or a part of them.

        Raises:
            DatasetError: the file that they are read from is another one now.
        """
        if isinstance(place, slice):
            return ChosenRecords(self._records, self._places[place])
        return self._records[int(self._places[place])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Records to train on, in file order, and held-out records in the order of their hash, at most ``max_records``."""

    training: Sequence[Record]
    held_out: Sequence[Record]


def split_dataset(dataset: Dataset, *, holdout_fraction: float, max_records: int) -> Split:
    """Hold out the persons whose hash is below ``holdout_fraction``; at most ``max_records`` of their records are used.

    A held-out record beyond ``max_records`` is used for nothing: training on it would put its patient on both sides.
    Of records that stay in their file only those are read here whose hash is among the ``max_records`` lowest.
    """
    hashes = dataset.split_hashes
    limit = int(holdout_fraction * 2**64)
    is_held_out = hashes < np.uint64(limit)
    training, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if len(held_out) > max_records:
        highest = np.partition(hashes[held_out], max_records - 1)[max_records - 1]
        held_out = held_out[hashes[held_out] <= highest]
    # Records of one person have the same hash: among those their ids decide.
    ordered = sorted(held_out.tolist(), key=lambda place: (int(hashes[place]), dataset.records[place].record_id))
    return Split(
        training=ChosenRecords(dataset.records, training.astype(np.int64)),
        held_out=ChosenRecords(dataset.records, np.array(ordered[:max_records], dtype=np.int64)),
    )
