"""The format ``jsonl``: one object a line, ``{"id", "prompt", "completion", "patient_id"?}``. Read strictly."""

from __future__ import annotations

from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD
from site_agent.training.data import Dataset
from site_agent.training.records_on_disk import read_dataset
from site_agent.training.rows.jsonl import JsonlFile
from site_agent.training.text_records import PROMPTS, PromptRecord

__all__ = ["PromptRecord", "read_prompts"]


def read_prompts(path: Path, *, patient_field: str = PATIENT_FIELD) -> Dataset:
    """Look at a whole dataset; ``patient_field`` is the field that names a record's patient.

    Raises:
        DatasetMissingError: there is no readable file.
        DatasetEmptyError: it holds no record.
        DatasetMalformedError: a record is not what the schema says; the facts name its file, line and field.
    """
    return read_dataset(JsonlFile(path), PROMPTS, patient_field=patient_field)
