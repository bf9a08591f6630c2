"""The seam of a data format: how its records are read, and how a file of them is looked at before it is registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from site_agent.jobs.record_schema import RecordSchema
from site_agent.training.data import Dataset
from site_agent.training.inspection import FileReport


class ReadDataset(Protocol):
    """Reads a whole dataset."""

    def __call__(self, path: Path, *, patient_field: str) -> Dataset:
        """The records of a file, whose field ``patient_field`` names a record's patient.

        Raises:
            DatasetError: it cannot be read, is empty, or a record is malformed; the facts name file, line and field.
        """
        ...


class InspectDataset(Protocol):
    """Looks at every record, and names each fault by file, line and field."""

    def __call__(self, path: Path, *, patient_field: str, schema: RecordSchema | None) -> FileReport:
        """Look at a whole file; ``schema`` is what its owner declared.

        Raises:
            DatasetMissingError: there is no readable file.
            DatasetEmptyError: it holds no record.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFormat:
    """One format. Both halves judge a file alike: what ``inspect`` finds no fault in, ``read`` reads."""

    read: ReadDataset
    inspect: InspectDataset
