"""The formats of text records: each container with each shape of record, by names that say both.

``jsonl``, ``csv`` and ``parquet`` alone hold prompts and completions; ``preferences-`` and ``text-`` before them say
another shape. A format's name is declared when a dataset is registered, so that a file is judged by what its owner
says that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from site_agent.jobs.record_schema import RecordSchema
from site_agent.training.data import Dataset
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.inspection import FileReport, inspect_rows
from site_agent.training.records_on_disk import read_dataset
from site_agent.training.rows.csv_table import CsvFile
from site_agent.training.rows.jsonl import JsonlFile
from site_agent.training.rows.parquet import ParquetFile
from site_agent.training.rows.row import RowFile
from site_agent.training.text_records import PLAIN_TEXTS, PREFERENCES, PROMPTS, RecordShape, TextRecord

OpenRows = Callable[[Path], RowFile]

CONTAINERS: Mapping[str, OpenRows] = {"jsonl": JsonlFile, "csv": CsvFile, "parquet": ParquetFile}


def text_format(open_rows: OpenRows, shape: RecordShape[TextRecord]) -> DatasetFormat:
    """The format of records of a shape in a container."""

    def read(path: Path, *, patient_field: str) -> Dataset:
        return read_dataset(open_rows(path), shape, patient_field=patient_field)

    def inspect(path: Path, *, patient_field: str, schema: RecordSchema | None) -> FileReport:
        return inspect_rows(open_rows(path), shape, patient_field=patient_field, schema=schema)

    return DatasetFormat(read=read, inspect=inspect)


def _in_every_container(prefix: str, shape: RecordShape[TextRecord]) -> dict[str, DatasetFormat]:
    return {f"{prefix}{name}": text_format(open_rows, shape) for name, open_rows in CONTAINERS.items()}


PROMPT_FORMATS = _in_every_container("", PROMPTS)
PREFERENCE_FORMATS = _in_every_container("preferences-", PREFERENCES)
PLAIN_TEXT_FORMATS = _in_every_container("text-", PLAIN_TEXTS)
