"""Room on the site's disk, asked for before the work that needs it: an error before it is a loss."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from site_agent.errors import SiteDiskFullError

MARGIN_BYTES = 16 << 20
"""Left beside what is asked for: database, journal and logs grow too, and others write to the same disk."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def free_bytes(folder: Path) -> int:
    """What the file system of a folder (or of its nearest parent that exists) gives this user."""
    while not folder.exists():
        folder = folder.parent
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def require_space(folder: Path, n_bytes: int, *, purpose: str) -> None:
    """See that there is room for ``n_bytes`` and the margin.

    Raises:
        SiteDiskFullError: there is not; its facts say how much is needed and free.
    """
    needed, free = n_bytes + MARGIN_BYTES, free_bytes(folder)
    if free < needed:
        raise SiteDiskFullError(
            "this site's disk has too little room; free some, and the site goes on by itself",
            purpose=purpose,
            needed_bytes=needed,
            free_bytes=free,
        )


def used_bytes(folder: Path) -> int:
    """How much the files under a folder hold; what vanishes meanwhile counts for nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Translate the errors of a full disk.

    Raises:
        SiteDiskFullError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SiteDiskFullError(
                "this site's disk is full; free some room, and the site goes on by itself", folder=folder.name
            ) from error
        raise
