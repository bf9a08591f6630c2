"""Data formats: one file a format, and one row of the table a format, by the name under which a site registers it."""

from __future__ import annotations

from collections.abc import Mapping

from site_agent.training.errors import DatasetFormatUnknownError
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.formats.prompt_jsonl import PROMPT_JSONL

FORMATS: Mapping[str, DatasetFormat] = {
    "jsonl": PROMPT_JSONL,
}
"""Every format that this trainer can read."""


def format_called(name: str) -> DatasetFormat:
    """The format of a name.

    Raises:
        DatasetFormatUnknownError: this trainer has none of that name.
    """
    found = FORMATS.get(name)
    if found is None:
        known = ", ".join(FORMATS)
        message = f"this trainer cannot read the dataset's format (it reads: {known})"
        raise DatasetFormatUnknownError(message, format=name[:40])
    return found
