"""Folders that the agent shares with a trainer, as the agent may touch them: what stands there, either may have put.

A trainer works on patient data with large libraries, so the agent takes it for owned by an attacker who writes what he
likes into the jobs folder: links to keys, pipes that never answer, files without end. Three rules follow, and this
module is all three: a folder is opened name by name, never through a link, and is then held by its descriptor, so that
what is renamed meanwhile changes nothing; a file is read only if it is a regular one, and only up to a bound; what is
deleted goes without following a link. Knows no job.

Safety: the folder that holds the jobs folder is the agent's own; from there on down nothing is trusted.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fl_protocol.errors import WardroundError

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_SUCH_WAY = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EACCES})

_PRIVATE_FOLDER, _SHARED_FOLDER = 0o700, 0o2770
_PRIVATE_FILE, _SHARED_FILE = 0o600, 0o660
_SHARED = stat.S_ISGID | stat.S_IRWXG


class JobsFolderUnsafeError(WardroundError):
    """Something stands in the jobs folder that no agent and no honest trainer puts there; it was not touched."""

    code = "jobs-folder-unsafe"


class FileTooLargeError(WardroundError):
    """A file in the jobs folder is larger than anything that it may hold."""

    code = "job-file-too-large"


@contextmanager
def held_folder(root: Path, *names: str, make: bool = False) -> Iterator[Path]:
    """Hold a folder below ``root`` open, and give a path to it that stays this folder's until the block ends.

    Args:
        root: the jobs folder; where it lies is the operator's word.
        names: from there, one folder each.
        make: make what is missing, of the mode that ``folder_mode`` gives, and bring it to the disk.

    Raises:
        FileNotFoundError: it is not there, and is not to be made.
        JobsFolderUnsafeError: one of the names is a link, no folder, or one that another user keeps to itself.
    """
    if make:
        root.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            if name in {"", ".", ".."} or "/" in name:
                raise JobsFolderUnsafeError("a folder of the jobs folder has a name of one part", name=name[:40])
            if make:
                _make_folder(name, held)
            below = _open_folder(name, held)
            os.close(held)
            held = below
        # The kernel resolves this to the folder itself, however it is called by now.
        yield Path(f"/proc/self/fd/{held}")
    finally:
        os.close(held)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """A regular file's bytes. The last part of the path is never followed; hold the folder for the rest.

    Raises:
        FileNotFoundError: there is none.
        JobsFolderUnsafeError: a link, a pipe, a device or a folder stands there.
        FileTooLargeError: it is larger than ``max_bytes``.
    """
    return read_bounded_from(path, 0, max_bytes, is_rest_refused=True)


def read_bounded_from(path: Path, offset: int, max_bytes: int, *, is_rest_refused: bool = False) -> bytes:
    """As ``read_bounded``, from ``offset`` on; what goes beyond ``max_bytes`` is left for later, or refused."""
    handle = _open_file(path)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise JobsFolderUnsafeError("what stands in the jobs folder is no regular file", file=path.name[:40])
    with os.fdopen(handle, "rb") as stream:
        stream.seek(offset)
        # No more than the file says it has: what is added meanwhile is for the next look.
        content = stream.read(min(max(found.st_size - offset, 0), max_bytes + 1))
    if len(content) > max_bytes and is_rest_refused:
        raise FileTooLargeError("a file in the jobs folder is too large", file=path.name[:40], max_bytes=max_bytes)
    return content[:max_bytes]


@contextmanager
def unsafe_errors() -> Iterator[None]:
    """Translate the errors of names that a trainer has put something else under.

    Raises:
        JobsFolderUnsafeError: a folder stands where a file is to be written, or the like.
    """
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError, FileNotFoundError) as error:
        message = "the jobs folder does not let this agent write; something stands in the way, or it is another user's"
        raise JobsFolderUnsafeError(message, reason=type(error).__name__) from error


def remove_without_following(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it; nothing happens where there is none.

    Raises:
        OSError: something of it could not be deleted.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def folder_mode(parent_mode: int) -> int:
    """Of a new folder: private, or, where its parent is one that two users share by their group, shared like it."""
    return _SHARED_FOLDER if parent_mode & _SHARED == _SHARED else _PRIVATE_FOLDER


def file_mode(parent_mode: int) -> int:
    """Of a new file: private, or shared where its folder is."""
    return _SHARED_FILE if parent_mode & _SHARED == _SHARED else _PRIVATE_FILE


def make_folder(path: Path) -> None:
    """Make one folder of the mode that ``folder_mode`` gives, if it is not there."""
    with suppress(FileExistsError):
        mode = folder_mode(path.parent.stat().st_mode)
        path.mkdir(mode=_PRIVATE_FOLDER)
        if mode != _PRIVATE_FOLDER:
            path.chmod(mode)


def _make_folder(name: str, parent: int) -> None:
    with suppress(FileExistsError):
        # Nobody else gets in before it has its mode; a umask takes nothing from it.
        os.mkdir(name, mode=_PRIVATE_FOLDER, dir_fd=parent)
        mode = folder_mode(os.fstat(parent).st_mode)
        if mode != _PRIVATE_FOLDER:
            made = _open_folder(name, parent)
            os.fchmod(made, mode)
            os.close(made)
        os.fsync(parent)


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in _NO_SUCH_WAY:
            message = "a link, a file or another user's folder stands in the jobs folder where this agent's belongs"
            raise JobsFolderUnsafeError(message, name=name[:40]) from error
        raise


def _open_file(path: Path) -> int:
    try:
        return os.open(path, _OPEN_FILE)
    except FileNotFoundError:
        raise
    except OSError as error:
        # A link gives ELOOP, a socket ENXIO, a folder of another user EACCES.
        message = "what stands in the jobs folder cannot be opened as a file"
        raise JobsFolderUnsafeError(message, file=path.name[:40], reason=type(error).__name__) from error
