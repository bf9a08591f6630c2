"""Writing a file whole and for good: a reader sees the old one or the new one, and a power cut keeps one of them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace ``path`` by a file with this content and mode, fsynced together with its folder.

    Raises:
        OSError: the folder is not there or not writable; the old file, if any, stands.
    """
    # A name of its own for each writer: a leftover of a crash never blocks the next attempt.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    # O_EXCL with the mode from the start: there is no moment at which others could open a key.
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
