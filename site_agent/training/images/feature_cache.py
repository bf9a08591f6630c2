"""Features that frozen towers computed, kept at the site: an image is looked at once a run, not once a round.

Safety: a feature says much of its image, so a file here is as private as the image. The folder is the run's own, for
this user alone, and is deleted with the run; nothing reads it but this trainer. A file that is damaged, or was made by
another base, is not used: its name and its checksum would have to fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

_DOMAIN = b"wardround/features/1\n"
_PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700


class FeatureCache:
    """A folder with one file a record: its features, little-endian float32, and their checksum."""

    def __init__(self, folder: Path, *, base_sha256: str) -> None:
        """Keep the folder, which appears with the first file.

        Args:
            folder: private to the site.
            base_sha256: the model digest of the base that computes.
        """
        self._folder = folder
        self._base_sha256 = base_sha256

    def get(self, what: str, *, length: int, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A record's features, computed now unless they are here and whole.

        Args:
            what: identifies the record's content: digests, and never its name.
            length: how many features there are.
            compute: gives them, float32, shape (length,).
        """
        key = hashlib.sha256(_DOMAIN + f"{self._base_sha256}\n{what}".encode()).digest()
        path = self._folder / key.hex()
        found = _read(path, key, length)
        if found is None:
            found = compute().detach().to(device="cpu", dtype=torch.float32).numpy().astype("<f4")
            self._write(path, key, found)
        return torch.from_numpy(found.copy())

    def _write(self, path: Path, key: bytes, features: NDArray[np.float32]) -> None:
        """Write a file whole or not at all. A full disk costs time, not the job."""
        content = features.tobytes()
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + _checksum(key, content))
            beside.replace(path)
        except OSError:
            _delete(beside)


def _read(path: Path, key: bytes, length: int) -> NDArray[np.float32] | None:
    """The features of a file; None where it is missing or is not whole, which deletes it."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    features, checksum = content[: 4 * length], content[4 * length :]
    if len(features) != 4 * length or checksum != _checksum(key, features):
        _delete(path)
        return None
    return np.frombuffer(features, dtype="<f4")


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _checksum(key: bytes, content: bytes) -> bytes:
    """Of the content, under the key: a file that was renamed does not fit either."""
    return hashlib.sha256(key + content).digest()
