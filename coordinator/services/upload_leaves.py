"""The chunk trees of masked uploads, of which sites fetch chunks with their paths when they check a sum.

The process that receives an upload has its tree anyway. Another one computes it when it is first asked for, once
however many ask at the same time: every site of a cohort does, in the moment in which a sum is published. An upload is
what its name says for ever, so nothing here grows old.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from coordinator.blobs.store import BlobStore
from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder

_MAX_REMEMBERED = 1024


@dataclass(slots=True)
class _Remembered:
    """One upload's tree, or None before it is known. Whoever reads the upload holds the lock, and the others wait."""

    tree: ChunkTreeBuilder | None = None
    reading: threading.Lock = field(default_factory=threading.Lock)


class UploadLeaves:
    """The trees of the uploads that were sent or asked for last. Any thread may ask; 32 bytes a MiB of each upload."""

    def __init__(self, max_remembered: int = _MAX_REMEMBERED) -> None:
        """Take of how many uploads the leaves are kept."""
        self._max_remembered = max_remembered
        self._lock = threading.Lock()
        self._uploads: OrderedDict[str, _Remembered] = OrderedDict()

    def remember(self, name: str, tree: ChunkTreeBuilder) -> None:
        """Keep the tree of an upload that was received here; nothing is added to it any more."""
        self._place_of(name).tree = tree

    def of(self, blobs: BlobStore, name: str) -> ChunkTreeBuilder:
        """The tree over the chunks of one upload; reads all of it where it was neither sent nor asked for lately.

        Raises:
            BlobNotFoundError: it is not there any more.
        """
        place = self._place_of(name)
        with place.reading:
            if place.tree is None:
                tree = ChunkTreeBuilder()
                for chunk in blobs.iter_views(name, chunk_bytes=CHUNK_BYTES):
                    tree.add(chunk)
                place.tree = tree
            return place.tree

    def _place_of(self, name: str) -> _Remembered:
        with self._lock:
            place = self._uploads.setdefault(name, _Remembered())
            self._uploads.move_to_end(name)
            while len(self._uploads) > self._max_remembered:
                self._uploads.popitem(last=False)
            return place
