"""Files of mode 0600 that are on the disk, whole, when the call returns. Knows nothing of what they hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from site_agent.state.disk_space import disk_errors

BytesLike = bytes | bytearray | memoryview

_PRIVATE_FILE = 0o600
_PRIVATE_FOLDER = 0o700


def make_private_folder(path: Path) -> None:
    """Make the folder and the parents that are missing, each of mode 0700, and bring every new entry to the disk."""
    missing: list[Path] = []
    folder = path
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    # One by one: ``parents=True`` would give the parents the mode that the umask leaves.
    for folder in reversed(missing):
        with disk_errors(folder):
            folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
            sync_folder(folder.parent)
    if not missing:
        # Another call may have made it and lost the power before its entry was on the disk.
        sync_folder(path.parent)


def write_private_file(path: Path, parts: Iterable[BytesLike]) -> None:
    """Write a file whole or not at all, mode 0600: beside it, to the disk, one rename, its folder.

    Raises:
        SiteDiskFullError: no room; the old file, if any, stands, and nothing is left of the new one.
    """
    beside = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        with disk_errors(path.parent):
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
            with os.fdopen(handle, "wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
            sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def erase_file(path: Path) -> None:
    """Overwrite a small file with zeros, then remove it.

    Safety: a copy-on-write file system or a flash disk may keep the old blocks; there the disk's own encryption has to
    protect what was deleted.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    try:
        with path.open("r+b") as stream:
            stream.write(bytes(size))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        # A full disk may refuse the zeros. Whoever hears of it has at least no file any more.
        _remove(path)
        raise
    _remove(path)


def _remove(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
