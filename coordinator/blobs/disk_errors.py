"""A full disk as a typed error: the one place that knows the numbers by which a file system says so."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.errors import BlobStoreFullError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Translate what writing under ``path`` raises.

    Raises:
        BlobStoreFullError: the disk, or the quota, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise BlobStoreFullError(
                "the blob store is full; nothing is lost, and an upload may be resumed later", folder=path.parent.name
            ) from error
        raise
