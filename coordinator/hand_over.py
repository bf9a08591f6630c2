"""Secrets that pass from one container of a stack to another as files. Knows files and modes, and no setting."""

from __future__ import annotations

import secrets
from pathlib import Path

from coordinator.ca.errors import KeyFileExistsError
from coordinator.ca.key_files import read_file, read_private_file, write_new_file

PASSWORD_BYTES = 32
_OWNER, _OWNER_AND_GROUP = 0o600, 0o640


def make_password(file: Path, *, given: Path | None, is_shared: bool = False) -> bool:
    """Write a password into a file; one that is there stays as it is.

    Args:
        file: where.
        given: a file whose content is taken, so that an operator may bring a password; where it is empty, or None, 256
            random bits are written as text.
        is_shared: whether the file's group may read it, too, since a database's server runs as another user; else only
            its owner can.

    Returns:
        Whether the file was written now.

    Raises:
        KeyFileMissingError: ``given`` is not there.
    """
    content = b"" if given is None else read_file(given).strip()
    try:
        password = content or secrets.token_urlsafe(PASSWORD_BYTES).encode()
        write_new_file(file, password + b"\n", mode=_OWNER_AND_GROUP if is_shared else _OWNER)
    except KeyFileExistsError:
        return False
    return True


def hand_over(token: Path, certificate: Path, *, to: Path) -> Path:
    """Move the first admin's token, and copy the root certificate, into a folder that others than the coordinator see.

    Returns:
        Where the token is now.

    Raises:
        KeyFileExistsError: the folder holds another coordinator's.
    """
    to.mkdir(parents=True, exist_ok=True)
    write_new_file(to / certificate.name, read_file(certificate), mode=0o644)
    moved = to / token.name
    write_new_file(moved, read_private_file(token), mode=0o600)
    token.unlink()
    return moved
