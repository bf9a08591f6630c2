"""The uploads that this process receives at the moment: how many at most, and one stream an upload.

A stream that comes later for the same upload takes the place of the earlier one, which is most often dead and does not
know it. What an interrupted stream had computed is kept for a while, so that the next one need not read the disk.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coordinator.errors import CoordinatorError, PartialTakenOverError
from coordinator.services.upload_digests import UploadDigests

MAX_UPLOADS = 16
RETRY_AFTER_S = 2.0
_MAX_REMEMBERED = 256


class UploadsBusyError(CoordinatorError):
    """As many uploads are in flight as may be. The site waits and tries again; its place in the round is safe."""

    code = "uploads-busy"


class _Stream:
    """One stream of one upload, while it lasts."""

    def __init__(self, cut: asyncio.Timeout) -> None:
        self.cut = cut
        self.is_replaced = False
        self.has_ended = asyncio.Event()


class UploadDesk:
    """Gives out places for streams. Used by one event loop."""

    def __init__(self, max_uploads: int = MAX_UPLOADS) -> None:
        """Take how many uploads may be in flight at once."""
        self._max_uploads = max_uploads
        self._streams: dict[str, _Stream] = {}
        self._digests: OrderedDict[str, tuple[str, UploadDigests]] = OrderedDict()

    @property
    def n_streams(self) -> int:
        """How many uploads are in flight."""
        return len(self._streams)

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[None]:
        """A place for a stream of the upload of that name, as long as the block runs.

        Raises:
            UploadsBusyError: every place is taken.
            PartialTakenOverError: a later stream of the same upload came; the block was ended for it.
        """
        earlier = self._streams.get(name)
        if earlier is None and len(self._streams) >= self._max_uploads:
            raise UploadsBusyError(
                "the coordinator receives as many uploads as it may; try again",
                max_uploads=self._max_uploads,
                retry_after_s=RETRY_AFTER_S,
            )
        try:
            async with asyncio.timeout(None) as cut:
                stream = _Stream(cut)
                self._streams[name] = stream
                try:
                    if earlier is not None:
                        await _replace(earlier)
                    yield
                finally:
                    stream.has_ended.set()
                    if self._streams.get(name) is stream:
                        del self._streams[name]
        except TimeoutError as error:
            if not stream.is_replaced:
                raise
            raise PartialTakenOverError("another stream of this upload came later; ask how far it is") from error

    def keep(self, name: str, digests: UploadDigests, *, lineage: str) -> None:
        """Remember what was computed over the bytes that are held."""
        self._digests[name] = (lineage, digests)
        self._digests.move_to_end(name)
        while len(self._digests) > _MAX_REMEMBERED:
            self._digests.popitem(last=False)

    def take(self, name: str, *, lineage: str, held: int) -> UploadDigests | None:
        """What was computed over exactly the bytes that are held, if that is known; it is the caller's from now on."""
        found = self._digests.pop(name, None)
        if found is None or found[0] != lineage or found[1].n_bytes != held:
            return None
        return found[1]


async def _replace(earlier: _Stream) -> None:
    earlier.is_replaced = True
    if not earlier.cut.expired():
        earlier.cut.reschedule(asyncio.get_running_loop().time())
    # It may be in the middle of a write; the next one begins where that ends.
    await earlier.has_ended.wait()
