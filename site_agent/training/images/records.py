"""One record of a dataset of images and texts. Knows no file format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SPLIT_DOMAIN = "wardround/split/"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ImageFile:
    """An image on the site's disk. Safety: its repr shows neither path nor digest.

    Attributes:
        path: absolute, inside the dataset's folder.
        frame: which frame of it, from 0; PNG and JPEG have one.
        sha256: of the file's bytes.
    """

    path: Path
    frame: int
    sha256: str

    def __repr__(self) -> str:
        """Nothing of the image."""
        return "ImageFile(...)"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ImageTextRecord:
    """One record. Safety: its repr shows nothing of it. Invariant: it has an image or a text.

    Attributes:
        line: where it stands in its manifest.
        labels: by class name: 1 present, -1 denied; others are not spoken of.
    """

    record_id: str
    patient_id: str | None
    line: int
    image: ImageFile | None
    text: str | None
    labels: Mapping[str, int]

    def __post_init__(self) -> None:
        """Check the invariant."""
        if self.image is None and self.text is None:
            message = "a record has an image or a text"
            raise ValueError(message)

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "ImageTextRecord(...)"

    @property
    def person(self) -> str:
        """Whom the record counts as: its patient, or itself where it names none."""
        return self.record_id if self.patient_id is None else self.patient_id

    @property
    def split_hash(self) -> int:
        """uint64, uniform over persons: SHA-256 of the person's key, first eight bytes, big-endian."""
        return int.from_bytes(hashlib.sha256((_SPLIT_DOMAIN + self.person).encode()).digest()[:8], "big")
