"""A TCP relay in front of PostgreSQL that can break a connection exactly at COMMIT, on either side of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from enum import StrEnum
from typing import Self

_CHUNK = 1 << 16


class Cut(StrEnum):
    """Where the next COMMIT is cut."""

    BEFORE = "before"
    """The server never sees it."""
    AFTER = "after"
    """The server has committed; its answer is lost."""


class CommitCutter:
    """Forwards to ``port`` until told to cut the next COMMIT, once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cut: Cut | None = None
        self.n_cut = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut_next(self, cut: Cut) -> None:
        self._cut = cut

    def close(self) -> None:
        # Shutdown wakes whoever waits in accept or recv; close alone does not.
        for held in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        for held in (self._listener, *self._open):
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            # Set once this connection's COMMIT is to be carried out unanswered.
            is_last = threading.Event()
            for work in (
                lambda near=near, far=far, is_last=is_last: self._upstream(near, far, is_last),
                lambda near=near, far=far, is_last=is_last: self._downstream(far, near, is_last),
            ):
                thread = threading.Thread(target=work, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _upstream(self, near: socket.socket, far: socket.socket, is_last: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(_CHUNK):
                if self._cut is not None and b"commit\x00" in data.lower():
                    cut, self._cut = self._cut, None
                    self.n_cut += 1
                    if cut is Cut.BEFORE:
                        break
                    is_last.set()
                far.sendall(data)
        _end(near, far)

    def _downstream(self, far: socket.socket, near: socket.socket, is_last: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_CHUNK):
                if is_last.is_set() and b"COMMIT\x00" in data:
                    # CommandComplete: it is done, and nobody is told.
                    break
                near.sendall(data)
        _end(near, far)


def _end(*sides: socket.socket) -> None:
    for side in sides:
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
