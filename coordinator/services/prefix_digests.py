"""The digests that go with the chunks of a download, computed once a blob however many sites fetch it.

With a chunk goes the SHA-256 of the blob's bytes up to the chunk's end. A site that takes the blob's SHA-256 anyway has
checked the chunk by the same pass. A blob is what its name says for ever, so nothing here grows old; only the most
recently sent blobs are remembered.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from fl_protocol.codec.chunks import CHUNK_BYTES, BytesLike

_MAX_REMEMBERED = 64


class PrefixDigests:
    """Of one blob. Invariant: ``_known[i]`` is the SHA-256 of its first ``min(i + 1 MiB chunks, length)`` bytes."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._lock = threading.Lock()
        self._known: list[bytes] = []
        self._running = hashlib.sha256()

    def through(self, data: BytesLike, *, offset: int) -> bytes | None:
        """SHA-256 of the blob up to the end of the chunk ``data``, which begins at ``offset``.

        None where that is not known: the chunks before this one did not pass by here, or it ends on no boundary.
        """
        index, within = divmod(offset, CHUNK_BYTES)
        with self._lock:
            if index < len(self._known):
                return self._known[index]
            if index > len(self._known) or within:
                return None
            self._running.update(data)
            self._known.append(self._running.digest())
            return self._known[index]


class DigestsOfBlobs:
    """Of the blobs that were sent most recently. Any thread may ask."""

    def __init__(self, max_remembered: int = _MAX_REMEMBERED) -> None:
        """Take of how many blobs the digests are kept; 32 bytes a MiB."""
        self._max_remembered = max_remembered
        self._lock = threading.Lock()
        self._blobs: OrderedDict[str, PrefixDigests] = OrderedDict()

    def of(self, name: str) -> PrefixDigests:
        """What is known of a blob; to be asked with whole chunks of it, each up to the next boundary of 1 MiB."""
        with self._lock:
            found = self._blobs.setdefault(name, PrefixDigests())
            self._blobs.move_to_end(name)
            while len(self._blobs) > self._max_remembered:
                self._blobs.popitem(last=False)
            return found
