"""The formats of timelines: rows in CSV or Parquet, OMOP tables, FHIR bundles. One record a patient who has an event.

Files may be larger than memory: rows pass through an external merge sort by patient, and what stays is each patient's
codes. A dataset of several files has the digest of the list of their names and digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD, RecordSchema
from site_agent.training.data import Dataset
from site_agent.training.errors import (
    DatasetChangedError,
    DatasetEmptyError,
    DatasetFormatUnknownError,
    DatasetMissingError,
)
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.inspection import Fault, FileReport
from site_agent.training.timelines.coded_rows import iter_coded_rows
from site_agent.training.timelines.fhir import fhir_files, iter_fhir
from site_agent.training.timelines.grouping import group_by_patient
from site_agent.training.timelines.omop import iter_omop, omop_files
from site_agent.training.timelines.rows import Row, RowFault, RowFaultKind, RowOrFault, rows_or_raise
from site_agent.training.timelines.timeline import timelines_from_histories


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSource:
    """Where rows come from.

    Attributes:
        files: those that are read, of a path that a site registered.
        rows: every row of a path, or its fault.
        is_one_file: whether the path is a file; its digest is then the dataset's.
    """

    files: Callable[[Path], tuple[Path, ...]]
    rows: Callable[[Path, str], Iterator[RowOrFault]]
    is_one_file: bool

    def read(self, path: Path, *, patient_field: str = PATIENT_FIELD) -> Dataset:
        """One record a patient. See ``ReadDataset``.

        Raises:
            DatasetMissingError: a file cannot be read.
            DatasetEmptyError: nobody has an event.
            CodeWithoutDateError, DatasetMalformedError: a row is wrong; the facts name file, line and field.
            DatasetChangedError: a file changed while it was read.
        """
        files = self.files(path)
        before, sha256 = _stamps(files), self._digest(files)
        rows = rows_or_raise(self.rows(path, patient_field))
        records = tuple(timelines_from_histories(group_by_patient(rows)))
        if _stamps(files) != before:
            raise DatasetChangedError("a file of the dataset changed while it was read", expected=sha256)
        if not records:
            raise DatasetEmptyError("the dataset holds no event")
        return Dataset(records=records, sha256=sha256)

    def inspect(
        self, path: Path, *, patient_field: str = PATIENT_FIELD, schema: RecordSchema | None = None
    ) -> FileReport:
        """Look at every row. See ``InspectDataset``.

        Raises:
            DatasetFormatUnknownError: a schema was declared: the columns of these formats are given.
            DatasetMissingError, DatasetEmptyError, DatasetMalformedError: as ``read``.
        """
        if schema is not None:
            raise DatasetFormatUnknownError("a schema can be declared for the format jsonl only", format="timeline")
        report, seen, key = FileReport(), _Persons(), os.urandom(32)
        with_event: set[bytes] = set()
        for row in self.rows(path, patient_field):
            if isinstance(row, RowFault):
                report.note(_fault(row))
                continue
            patient = hashlib.blake2b(row.patient_id.encode(), digest_size=16, key=key).digest()
            if row.event is not None:
                with_event.add(patient)
            for field in seen.contradictions(patient, row):
                fault = RowFault(file=row.file, place=row.place, field=field, kind=RowFaultKind.CONTRADICTS)
                report.note(_fault(fault))
        if not with_event and not report.n_faults:
            raise DatasetEmptyError("the dataset holds no event")
        report.n_records = report.n_patients = len(with_event)
        report.sha256 = self._digest(self.files(path))
        return report

    def _digest(self, files: tuple[Path, ...]) -> str:
        digests = {path.name: _file_sha256(path) for path in files}
        if self.is_one_file:
            return next(iter(digests.values()))
        return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


class _Persons:
    """What was said of persons. Kept by keyed hashes of their keys."""

    def __init__(self) -> None:
        self._told: dict[tuple[bytes, str], object] = {}

    def contradictions(self, patient: bytes, row: Row) -> Iterator[str]:
        """The fields in which a row says something else than an earlier one."""
        if row.person is None:
            return
        for field, value in (("birth_date", row.person.birth_day), ("sex", row.person.sex)):
            if value is not None and self._told.setdefault((patient, field), value) != value:
                yield field


def _fault(fault: RowFault) -> Fault:
    return Fault(file=fault.file, line=fault.place, field=fault.field, fault=fault.kind.value)


def _stamps(files: tuple[Path, ...]) -> list[tuple[int, int]]:
    try:
        return [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetMissingError("the dataset's file cannot be read", reason=type(error).__name__) from error


def _rows_of_file(path: Path, patient_field: str) -> Iterator[RowOrFault]:
    return iter_coded_rows(path, patient_field=patient_field)


def _format(source: TimelineSource) -> DatasetFormat:
    return DatasetFormat(read=source.read, inspect=source.inspect)


_ROWS = TimelineSource(files=lambda path: (path,), rows=_rows_of_file, is_one_file=True)

TIMELINE_ROWS = _format(_ROWS)
"""Rows in CSV, or in Parquet where the file's name ends so."""
OMOP_TABLES = _format(TimelineSource(files=omop_files, rows=lambda path, _: iter_omop(path), is_one_file=False))
FHIR_BUNDLES = _format(TimelineSource(files=fhir_files, rows=lambda path, _: iter_fhir(path), is_one_file=False))
