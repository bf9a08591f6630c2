"""One agent on a state directory: two would mask with the same secrets."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from site_agent.errors import StateDirectoryLockedError

LOCK_FILE = "agent.lock"
_PRIVATE_FILE = 0o600


class DirectoryLock:
    """An exclusive lock that the kernel lets go of when the process ends, however it ends."""

    def __init__(self, state_dir: Path) -> None:
        """Name the lock; ``acquire`` takes it."""
        self._path = state_dir / LOCK_FILE
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StateDirectoryLockedError: another process has it.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            message = "another agent works on this state directory; stop it first, or name another --state-dir"
            raise StateDirectoryLockedError(message, holder_pid=holder) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Let go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
