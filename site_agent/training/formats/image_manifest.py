"""The format ``image-manifest``: a CSV with images, labels and texts. What a row says is in ``images/manifest.py``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from site_agent.jobs.record_schema import PATIENT_FIELD, RecordSchema
from site_agent.training.data import Dataset
from site_agent.training.formats.dataset_format import DatasetFormat
from site_agent.training.images.manifest import records_of_manifest, scan_manifest
from site_agent.training.inspection import Fault, FileReport


def read_image_manifest(path: Path, *, patient_field: str = PATIENT_FIELD) -> Dataset:
    """Read a whole manifest, and hash every image that it names.

    Raises:
        DatasetMissingError, DatasetEmptyError: there is no manifest, or it has no row.
        ManifestInvalidError, ImageMissingError, ImageRefusedError: the facts name a row's line and column.
    """
    records, sha256 = records_of_manifest(path, patient_field=patient_field)
    return Dataset(records=records, sha256=sha256)


def inspect_image_manifest(
    path: Path, *, patient_field: str = PATIENT_FIELD, schema: RecordSchema | None = None
) -> FileReport:
    """Look at every row and every image's bytes; images are decoded when they are used.

    A declared schema is not looked at: the columns of a manifest are the format's own.

    Raises:
        DatasetMissingError, DatasetEmptyError: there is no manifest, or it has no row.
    """
    del schema
    scan = scan_manifest(path, patient_field=patient_field)
    key = os.urandom(32)
    persons = {
        hashlib.blake2b(
            json.dumps([record.patient_id is None, record.person]).encode(), digest_size=16, key=key
        ).digest()
        for record in scan.records
    }
    return FileReport(
        sha256=scan.sha256,
        n_records=scan.n_rows,
        n_patients=len(persons),
        n_faults=scan.n_faults,
        faults=[Fault(file=path.name, line=one.line, field=one.column, fault=one.fault.value) for one in scan.faults],
    )


IMAGE_MANIFEST = DatasetFormat(read=read_image_manifest, inspect=inspect_image_manifest)
"""The row of the table."""
