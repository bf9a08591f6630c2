"""Processes that may die at any boundary: between two things that outlive them, a commit, a file, a message.

Which process acts is known from the task's context. A process that died does nothing any more: whatever still unwinds
in it meets its death at the next boundary, so that a ``finally`` of the dead writes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


class PowerCutError(BaseException):
    """The process is dead: nothing of its memory is left."""


@dataclass(eq=False)
class Process:
    """One life of one party.

    Attributes:
        name: ``coordinator``, ``driver-1`` or a site's name.
        dies_in: at the how many-th boundary from now it dies; None while nothing is planned.
        dies_at: the boundary, by name and count, at which it dies.
        is_disk_full: whether what it writes fails.
        passed: the boundaries that it passed, when they are wanted.
    """

    name: str
    dies_in: int | None = None
    dies_at: tuple[str, int] | None = None
    is_dead: bool = False
    is_disk_full: bool = False
    passed: list[str] | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def pass_boundary(self, name: str) -> None:
        """Note the boundary, and die at it if that is planned."""
        if self.is_dead:
            raise PowerCutError(self.name)
        self.counts[name] = self.counts.get(name, 0) + 1
        if self.passed is not None:
            self.passed.append(name)
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in <= 0:
                self._die()
        if self.dies_at == (name, self.counts[name]):
            self._die()

    def _die(self) -> None:
        self.is_dead = True
        raise PowerCutError(self.name)


def boundary(name: str) -> None:
    """Something that outlives the process is about to happen, or has just happened."""
    process = CURRENT.get()
    if process is not None:
        process.pass_boundary(name)


def is_disk_full() -> bool:
    process = CURRENT.get()
    return process is not None and process.is_disk_full


def refuse_on_full_disk() -> None:
    if is_disk_full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def living_as(process: Process | None) -> Iterator[None]:
    token = CURRENT.set(process)
    try:
        yield
    finally:
        CURRENT.reset(token)


def _fsync(handle: int) -> None:
    """No power is cut here, only processes: what was written stays written, and need not be waited for."""
    process = CURRENT.get()
    if process is None:
        return
    is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
    if not is_folder:
        refuse_on_full_disk()
    name = _what(str(Path(f"/proc/self/fd/{handle}").readlink()))
    process.pass_boundary(f"folder {name}: renamed, not synced" if is_folder else f"file {name}: written, not renamed")


def _what(path: str) -> str:
    """A file by its role, not by its place."""
    parts = path.split("/")
    for room in ("journal", "states", "jobs", "blobs"):
        if room in parts:
            inside = parts[parts.index(room) + 1 :]
            last = inside[-1].strip(".").removesuffix(".new") if inside else ""
            is_named = last in {"key", "record", "masked.bin", "manifest.bin"} or last.endswith(".safetensors")
            return f"{room}/{last}" if is_named else room
    return "other"


def around(name: str, call: Callable[..., object]) -> Callable[..., object]:
    """``call`` with a boundary before it and one after it."""

    def wrapped(*args: object, **kwargs: object) -> object:
        boundary(f"{name}: before")
        outcome = call(*args, **kwargs)
        boundary(f"{name}: after")
        return outcome

    return wrapped


@contextmanager
def watched_disk() -> Iterator[None]:
    """Let every fsync be a boundary, and cost nothing."""
    with mock.patch.object(os, "fsync", _fsync):
        yield
