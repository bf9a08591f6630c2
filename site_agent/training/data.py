"""Records of a dataset, whatever their format: counted by patient, split by a hash. Knows neither files nor tensors.

Which records are held out is decided by a hash of the patient (of the record where no patient is named), so that it is
the same in each round, and no patient is on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """All records of a file, in its order. Invariant: there is at least one.

    Attributes:
        sha256: of the file's bytes.
    """

    records: Sequence[Record]
    sha256: str

    @property
    def n_patients(self) -> int:
        """Distinct persons: a record without a patient counts as one of its own."""
        return len({(record.patient_id is None, record.person) for record in self.records})


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Records to train on, in file order, and held-out records in the order of their hash, at most ``max_records``."""

    training: tuple[Record, ...]
    held_out: tuple[Record, ...]


def split_dataset(dataset: Dataset, *, holdout_fraction: float, max_records: int) -> Split:
    """Hold out the persons whose hash is below ``holdout_fraction``; at most ``max_records`` of their records are used.

    A held-out record beyond ``max_records`` is used for nothing: training on it would put its patient on both sides.
    """
    limit = int(holdout_fraction * 2**64)
    training: list[Record] = []
    held_out: list[tuple[int, str, Record]] = []
    for record in dataset.records:
        hashed = split_hash(record)
        if hashed < limit:
            held_out.append((hashed, record.record_id, record))
        else:
            training.append(record)
    held_out.sort(key=lambda item: item[:2])
    return Split(training=tuple(training), held_out=tuple(record for _, _, record in held_out[:max_records]))
