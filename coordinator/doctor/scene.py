"""What the coordinator's ``doctor`` looks at: one folder, one clock, and the disk's word, which tests put in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.doctor.live import said_by_process
from coordinator.installation import Installation
from coordinator.replicas import running_processes
from fl_protocol.clock import Clock


def free_bytes(path: Path) -> int:
    """What the file system of a folder gives this user. Raises OSError."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One look at one coordinator."""

    installation: Installation
    config: Path
    clock: Clock
    free_bytes: Callable[[Path], int] = free_bytes
    serve_file: Path | None = None
    """The process to ask, where it leaves its addresses elsewhere than in the folder."""

    @property
    def is_running(self) -> bool:
        """Whether a process of this folder lives on this machine."""
        if self.serve_file is not None:
            return said_by_process(self.serve_file) is not None
        return bool(running_processes(self.installation))
