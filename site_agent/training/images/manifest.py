"""The CSV that lists a dataset's images and texts, read strictly. Knows no pixels.

A manifest has a header and one row a record. ``image`` is a path relative to the manifest's folder; ``label`` is one
class, ``labels`` several, parted by semicolons, where ``-NAME`` denies one; ``text`` is free text; ``patient_id`` names
the person; ``id`` names the record (the image's path and frame where it is missing); ``frame`` counts from 0 inside a
DICOM file. What identifies the dataset is a digest over the manifest's bytes and those of each image that it names.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from site_agent.training.errors import DatasetEmptyError, DatasetMissingError, TrainerError
from site_agent.training.images.errors import (
    ImageFault,
    ImageMissingError,
    ImageRefusedError,
    ManifestFault,
    ManifestInvalidError,
)
from site_agent.training.images.limits import MAX_IMAGE_BYTES
from site_agent.training.images.records import ImageFile, ImageTextRecord

MAX_MANIFEST_BYTES = 256 << 20
MAX_LABELS = 64
MAX_LISTED_FAULTS = 50

_DIGEST_DOMAIN = b"wardround/image-manifest/1\n"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/()+-]{0,99}")
_FRAME = re.compile(r"0|[1-9][0-9]{0,5}")
_COLUMNS = ("image", "label", "labels", "text", "id", "frame")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """One fault. ``line`` is that on which a row begins, from 1; ``column`` is None where the whole row is wrong."""

    line: int
    column: str | None
    fault: ManifestFault | ImageFault

    def to_error(self) -> TrainerError:
        """The fault as the error that stops a job."""
        facts: dict[str, str | int] = {"record": self.line, "fault": self.fault.value}
        if self.column is not None:
            facts["field"] = self.column
        if isinstance(self.fault, ManifestFault):
            return ManifestInvalidError("a row of the manifest is not what the format says", file="manifest", **facts)
        if self.fault is ImageFault.MISSING:
            return ImageMissingError("a row of the manifest names a file that cannot be read", file="image", **facts)
        return ImageRefusedError("a row of the manifest names a file that is not opened", file="image", **facts)


@dataclass(slots=True, kw_only=True)
class ManifestScan:
    """All of a manifest: its good records in its order, every fault counted, the first of them listed."""

    sha256: str = ""
    n_rows: int = 0
    records: list[ImageTextRecord] = field(default_factory=list)
    n_faults: int = 0
    faults: list[RowFault] = field(default_factory=list)

    def note(self, fault: RowFault) -> None:
        """Count a fault, and list it while there is room."""
        self.n_faults += 1
        if len(self.faults) < MAX_LISTED_FAULTS:
            self.faults.append(fault)


def scan_manifest(path: Path, *, patient_field: str) -> ManifestScan:
    """Look at every row, and at every byte of every image that a row names; decodes nothing.

    Raises:
        DatasetMissingError: there is no readable manifest.
        DatasetEmptyError: it has no row.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise DatasetMissingError("the dataset's manifest cannot be read", reason=type(error).__name__) from error
    scan = ManifestScan()
    if len(content) > MAX_MANIFEST_BYTES:
        scan.note(RowFault(line=1, column=None, fault=ManifestFault.TOO_LARGE))
        return scan
    digests: dict[Path, str] = {}
    seen: set[str] = set()
    for line, row in _rows(content, patient_field, scan):
        scan.n_rows += 1
        record = _record_from_row(row, line, patient_field, folder=path.parent, digests=digests, scan=scan)
        if record is None:
            continue
        if record.record_id in seen:
            scan.note(RowFault(line=line, column="id" if "id" in row else "image", fault=ManifestFault.ID_TWICE))
            continue
        seen.add(record.record_id)
        scan.records.append(record)
    if scan.n_rows == 0 and scan.n_faults == 0:
        raise DatasetEmptyError("the manifest lists no record")
    scan.sha256 = _dataset_digest(content, digests, path.parent.resolve())
    return scan


def records_of_manifest(path: Path, *, patient_field: str) -> tuple[tuple[ImageTextRecord, ...], str]:
    """The records of a manifest without faults, and the dataset's digest.

    Raises:
        ManifestInvalidError, ImageMissingError, ImageRefusedError: the first fault, by line and column.
        DatasetMissingError, DatasetEmptyError: as ``scan_manifest``.
    """
    scan = scan_manifest(path, patient_field=patient_field)
    if scan.faults:
        raise scan.faults[0].to_error()
    return tuple(scan.records), scan.sha256


def _rows(content: bytes, patient_field: str, scan: ManifestScan) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Each row by column, with the line on which it begins; faults of the whole file end it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        scan.note(RowFault(line=line, column=None, fault=ManifestFault.NOT_UTF_8))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: Sequence[str] | None = None
    begins = 1
    while True:
        try:
            values = next(reader, None)
        except csv.Error:
            # The reader's own sentence may quote the row.
            scan.note(RowFault(line=begins, column=None, fault=ManifestFault.NOT_CSV))
            return
        if values is None:
            break
        line, begins = begins, reader.line_num + 1
        if header is None:
            header = [value.strip() for value in values]
            if not _is_header(header, patient_field, scan):
                return
        elif len(values) != len(header):
            scan.n_rows += 1
            scan.note(RowFault(line=line, column=None, fault=ManifestFault.WRONG_NUMBER_OF_FIELDS))
        else:
            yield line, dict(zip(header, values, strict=True))
    if header is None:
        scan.note(RowFault(line=1, column=None, fault=ManifestFault.NO_HEADER))


def _is_header(header: Sequence[str], patient_field: str, scan: ManifestScan) -> bool:
    """Whether the columns can be used. A column that nobody knows is not named: it may be a row of data."""
    known = {*_COLUMNS, patient_field}
    before = scan.n_faults
    for number, column in enumerate(header):
        if column not in known:
            scan.note(RowFault(line=1, column=None, fault=ManifestFault.COLUMN_UNKNOWN))
        elif column in header[:number]:
            scan.note(RowFault(line=1, column=column, fault=ManifestFault.COLUMN_TWICE))
    if not {"image", "text"} & set(header):
        scan.note(RowFault(line=1, column="image", fault=ManifestFault.COLUMN_MISSING))
    if {"label", "labels"} <= set(header):
        scan.note(RowFault(line=1, column="labels", fault=ManifestFault.COLUMN_TWICE))
    if "image" not in header and "id" not in header:
        scan.note(RowFault(line=1, column="id", fault=ManifestFault.COLUMN_MISSING))
    return scan.n_faults == before


def _record_from_row(
    row: Mapping[str, str],
    line: int,
    patient_field: str,
    *,
    folder: Path,
    digests: dict[Path, str],
    scan: ManifestScan,
) -> ImageTextRecord | None:
    before = scan.n_faults

    def note(column: str | None, fault: ManifestFault | ImageFault) -> None:
        scan.note(RowFault(line=line, column=column, fault=fault))

    name, text = row.get("image", "").strip(), row.get("text", "").strip()
    patient_id, record_id = row.get(patient_field), row.get("id")
    if not name and not text:
        note(None, ManifestFault.NEITHER_IMAGE_NOR_TEXT)
    for column, value in ((patient_field, patient_id), ("id", record_id)):
        if value is not None and not value.strip():
            note(column, ManifestFault.BLANK)
    frame = row.get("frame", "").strip()
    if frame and not (name and _FRAME.fullmatch(frame)):
        note("frame", ManifestFault.NOT_A_FRAME)
    column = "label" if "label" in row else "labels"
    labels = _labels(row.get(column, ""), is_one=column == "label")
    if isinstance(labels, ManifestFault):
        note(column, labels)
    image: ImageFile | None = None
    if name and scan.n_faults == before:
        found = _image_file(folder, name, int(frame) if frame else 0, digests)
        if isinstance(found, ImageFault):
            note("image", found)
        else:
            image = found
    if scan.n_faults != before or isinstance(labels, ManifestFault):
        return None
    return ImageTextRecord(
        record_id=record_id if record_id is not None else (f"{name}#{frame}" if frame else name) or f"line {line}",
        patient_id=patient_id,
        line=line,
        image=image,
        text=text or None,
        labels=labels,
    )


def _labels(value: str, *, is_one: bool) -> Mapping[str, int] | ManifestFault:
    """Labels by name: 1 present, -1 denied; a name that is not there is not spoken of."""
    parts = [value.strip()] if is_one else [part.strip() for part in value.split(";")]
    labels: dict[str, int] = {}
    for part in parts:
        if not part:
            continue
        denied = part.startswith("-") and not is_one
        name = part[1:] if denied else part
        if _LABEL.fullmatch(name) is None or len(labels) == MAX_LABELS:
            return ManifestFault.NOT_A_LABEL
        if name in labels:
            return ManifestFault.LABEL_TWICE
        labels[name] = -1 if denied else 1
    return labels


def _image_file(folder: Path, name: str, frame: int, digests: dict[Path, str]) -> ImageFile | ImageFault:
    """Find a row's file and hash it, once a file.

    Safety: neither a path nor a link leads out of the manifest's folder, and what is no plain file is not opened.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\x00" in name or ":" in name:
        return ImageFault.LEADS_OUT
    try:
        path = (folder / relative).resolve(strict=True)
        if not path.is_relative_to(folder.resolve()):
            return ImageFault.LEADS_OUT
        if not path.is_file():
            return ImageFault.MISSING
        if path.stat().st_size > MAX_IMAGE_BYTES:
            return ImageFault.FILE_TOO_LARGE
        if path not in digests:
            with path.open("rb") as file:
                digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError):
        return ImageFault.MISSING
    return ImageFile(path=path, frame=frame, sha256=digests[path])


def _dataset_digest(manifest: bytes, digests: Mapping[Path, str], folder: Path) -> str:
    """SHA-256 over the manifest's digest and, in the order of their paths, each image's path and digest."""
    whole = hashlib.sha256(_DIGEST_DOMAIN + hashlib.sha256(manifest).digest())
    for name, sha256 in sorted((path.relative_to(folder).as_posix(), sha256) for path, sha256 in digests.items()):
        whole.update(name.encode("utf-8", "surrogateescape") + b"\x00" + bytes.fromhex(sha256))
    return whole.hexdigest()
