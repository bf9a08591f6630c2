"""Data formats: one file a format, and one row of the table a format, by the name under which a site registers it."""

from __future__ import annotations

from collections.abc import Mapping

from site_agent.training.errors import DatasetFormatUnknownError
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.formats.image_manifest import IMAGE_MANIFEST
from site_agent.training.formats.text_files import PLAIN_TEXT_FORMATS, PREFERENCE_FORMATS, PROMPT_FORMATS
from site_agent.training.formats.timelines import FHIR_BUNDLES, OMOP_TABLES, TIMELINE_ROWS

FORMATS: Mapping[str, DatasetFormat] = {
    **PROMPT_FORMATS,
    **PREFERENCE_FORMATS,
    **PLAIN_TEXT_FORMATS,
    "timeline-rows": TIMELINE_ROWS,
    "omop": OMOP_TABLES,
    "fhir": FHIR_BUNDLES,
    "image-manifest": IMAGE_MANIFEST,
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
