"""What can be wrong with a dataset of images.

    DatasetError                        site_agent.training.errors
    ├── ManifestInvalidError            a row, or the header, is not what the format says
    ├── ImageMissingError               a row names a file that is not in the dataset's folder
    ├── ImageRefusedError               a file that is too large to be opened, or lies outside the folder
    └── ImageUndecodableError           a file that is no image of a known kind

Safety: an image is named by its row in the manifest. Its file's name may be a patient's, so no error tells it.
"""

from __future__ import annotations

from enum import StrEnum

from site_agent.training.errors import DatasetError


class ManifestFault(StrEnum):
    """How a manifest can be wrong."""

    NOT_UTF_8 = "not-utf-8"
    NOT_CSV = "not-csv"
    TOO_LARGE = "too-large"
    NO_HEADER = "no-header"
    COLUMN_UNKNOWN = "unknown-column"
    COLUMN_TWICE = "column-twice"
    COLUMN_MISSING = "column-missing"
    WRONG_NUMBER_OF_FIELDS = "wrong-number-of-fields"
    BLANK = "blank"
    NEITHER_IMAGE_NOR_TEXT = "neither-image-nor-text"
    NOT_A_LABEL = "not-a-label"
    LABEL_TWICE = "label-twice"
    NOT_A_FRAME = "not-a-frame"
    ID_TWICE = "id-twice"


class ImageFault(StrEnum):
    """How an image's file can be wrong."""

    MISSING = "missing"
    LEADS_OUT = "leads-out-of-the-folder"
    FILE_TOO_LARGE = "file-too-large"
    TOO_MANY_PIXELS = "too-many-pixels"
    EMPTY = "empty"
    KIND_UNKNOWN = "kind-unknown"
    DAMAGED = "damaged"
    NO_PIXELS = "no-pixels"
    NO_SUCH_FRAME = "no-such-frame"
    PHOTOMETRY_UNKNOWN = "photometry-unknown"
    WINDOW_UNUSABLE = "window-unusable"
    COMPRESSION_UNKNOWN = "compression-unknown"


class ManifestInvalidError(DatasetError):
    """The manifest is not what the format says; facts name its line and column."""

    code = "manifest-invalid"
    advice = (
        "A manifest is a CSV file with a header. Columns: image (a path below the manifest's folder), label or labels, "
        "text, patient_id, id, frame; each row has an image or a text."
    )


class ImageMissingError(DatasetError):
    """A row names a file that is not there or cannot be read."""

    code = "image-missing"
    advice = "Images lie in the manifest's folder or below it; the row that names the missing one is told."


class ImageRefusedError(DatasetError):
    """A file is not opened: it lies outside the dataset's folder, or would need too much memory."""

    code = "image-refused"
    advice = "Copy images below the manifest's folder; cut whole slides into tiles of at most 50 million pixels."


class ImageUndecodableError(DatasetError):
    """A file is no image that this trainer can decode."""

    code = "image-undecodable"
    advice = "Images are PNG, JPEG or DICOM. Open the named row's file with a viewer, and export it again."
