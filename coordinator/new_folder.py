"""A folder that is made whole or not at all, also where it is there already and empty, as a container's volume is.

Knows the file system; knows nothing of what is put into the folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_protocol.errors import WardroundError


class FolderNotEmptyError(WardroundError):
    """The folder holds something already, and nothing of it is overwritten."""

    code = "installation-exists"


@contextmanager
def new_folder(directory: Path, *, last: str) -> Iterator[Path]:
    """A place to fill; when the body has ended, what lies in it is in ``directory``.

    A folder that is not there appears by one rename. One that is there (a volume's mount point cannot be renamed over)
    gets one entry after the other. Folders without a file in them, such as ``lost+found``, count as nothing.

    Args:
        directory: absolute.
        last: the entry that comes last, so that whoever sees it sees all.

    Raises:
        FolderNotEmptyError: there is something in it.
    """
    is_there = directory.exists()
    if is_there and (not directory.is_dir() or any(not entry.is_dir() for entry in directory.rglob("*"))):
        raise FolderNotEmptyError("the folder is not empty; name another", directory=str(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    name = f".{directory.name}.init-{os.getpid()}"
    workplace = directory / name if is_there else directory.with_name(name)
    workplace.mkdir(mode=0o700)
    try:
        yield workplace
        if is_there:
            _move_entries(workplace, directory, last=last)
        else:
            workplace.rename(directory)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _move_entries(workplace: Path, directory: Path, *, last: str) -> None:
    for entry in sorted(workplace.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
        entry.rename(directory / entry.name)
