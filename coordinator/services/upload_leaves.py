"""The leaves of the masked uploads that were asked for last: computed once an upload, however many chunks are fetched.

An upload is what its name says for ever, so nothing here grows old.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from coordinator.blobs.store import BlobStore
from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder

_MAX_REMEMBERED = 1024


class UploadLeaves:
    """The chunk trees of uploads. Any thread may ask; 32 bytes a MiB of each remembered upload."""

    def __init__(self, max_remembered: int = _MAX_REMEMBERED) -> None:
        """Take of how many uploads the leaves are kept."""
        self._max_remembered = max_remembered
        self._lock = threading.Lock()
        self._trees: OrderedDict[str, ChunkTreeBuilder] = OrderedDict()

    def of(self, blobs: BlobStore, name: str) -> ChunkTreeBuilder:
        """The tree over the chunks of one upload; reads all of it where it was not asked for lately.

        Raises:
            BlobNotFoundError: it is not there any more.
        """
        with self._lock:
            if name in self._trees:
                self._trees.move_to_end(name)
                return self._trees[name]
        tree = ChunkTreeBuilder()
        for chunk in blobs.iter_views(name, chunk_bytes=CHUNK_BYTES):
            tree.add(chunk)
        with self._lock:
            self._trees[name] = tree
            while len(self._trees) > self._max_remembered:
                self._trees.popitem(last=False)
        return tree
