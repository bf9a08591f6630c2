"""The bytes of one upload's stream: chunks are checked and kept while the next ones arrive. Knows no table."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from coordinator.blobs.store import BlobStore, PartialWriter, StoredBlob
from coordinator.errors import BlobOffsetError, InvalidMessageError, PartialTakenOverError
from coordinator.services.upload_desk import UploadDesk
from coordinator.services.upload_digests import UploadDigests
from fl_protocol.codec import merkle

MAX_WAITING = 4
"""How many chunks may wait for the disk while as many are written."""


class UploadTruncatedError(InvalidMessageError):
    """The stream ended before the announced length; what came is held, and the upload may be resumed."""

    code = "upload-truncated"


class ChunkAlteredError(InvalidMessageError):
    """A chunk does not have the digest that came with it; it was not kept, and everything before it was."""

    code = "chunk-altered"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPart:
    """Some bytes and where they belong; ``leaf_sha256`` is SHA-256(0x00 || data) as the sender took it."""

    offset: int
    data: bytes | memoryview
    leaf_sha256: bytes | None = None


@dataclass(slots=True, kw_only=True)
class UploadSink:
    """Where the bytes of one stream go.

    Invariant: one thread at a time is inside, and none after ``close``: a stream may be cut while a thread writes.
    """

    writer: PartialWriter
    digests: UploadDigests
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_closed: bool = False

    @property
    def held(self) -> int:
        """How many bytes of the upload are kept."""
        return self.writer.held

    def take(self, part: BlobPart) -> int:
        """Keep what of a part is not held yet; how much is held then.

        Raises:
            ChunkAlteredError: the part's bytes are not those that were sent; nothing of it is kept.
            PartialTakenOverError: another stream has the upload, or this one was closed.
            BlobError: it could not be kept.
        """
        with self._lock:
            if self._is_closed:
                raise PartialTakenOverError("the stream was closed before the chunk was kept", offset=part.offset)
            leaf = merkle.leaf_hash(part.data)
            if part.leaf_sha256 is not None and part.leaf_sha256 != leaf:
                raise ChunkAlteredError("a chunk was altered on its way; send it again", offset=part.offset)
            # A stream that begins before the held end repeats some bytes.
            skipped = self.writer.held - part.offset
            if skipped < len(part.data):
                data = memoryview(part.data)[skipped:]
                self.writer.append(data)
                self.digests.add(data, leaf=leaf if skipped == 0 else None)
            return self.writer.held

    def finish(self, sha256: str) -> StoredBlob:
        """Make what is held a blob."""
        with self._lock:
            return self.writer.finish(sha256=sha256)

    def close(self) -> None:
        """Let go of the partial."""
        with self._lock:
            self._is_closed = True
            self.writer.close()


def open_sink(blobs: BlobStore, desk: UploadDesk, *, partial: str, chunk_bytes: int) -> UploadSink:
    """Continue an upload. What is held is read again only where this process did not receive it."""
    writer = blobs.open_partial(partial)
    try:
        digests = desk.take(partial, lineage=writer.lineage, held=writer.held)
        if digests is None:
            held = blobs.iter_partial(partial, chunk_bytes=chunk_bytes)
            digests = UploadDigests.of(held, chunk_bytes=chunk_bytes)
    except BaseException:
        writer.close()
        raise
    return UploadSink(writer=writer, digests=digests)


async def receive_parts(
    sink: UploadSink,
    parts: AsyncIterator[BlobPart],
    *,
    offset: int,
    n_bytes: int,
    note: Callable[[int], Awaitable[None]],
) -> None:
    """Take the parts, some being written while the next ones arrive; ``2 * MAX_WAITING`` are in memory at most.

    Args:
        sink: where they go.
        parts: in order, without gaps.
        offset: where the first part belongs.
        n_bytes: the announced length of the whole.
        note: told how much is held, now and then.

    Raises:
        BlobOffsetError: the stream does not begin where the upload stands.
        InvalidMessageError: a part leaves a gap or runs past the length.
        UploadTruncatedError: the stream ended early.
        ChunkAlteredError, BlobError: see ``UploadSink.take``.
    """
    if offset > sink.held:
        raise BlobOffsetError("this is not where the upload stands", offset=offset, held=sink.held)
    position = offset
    writer = _Writer(sink, note)
    await note(sink.held)
    try:
        async for part in parts:
            if part.offset != position or position + len(part.data) > n_bytes:
                raise InvalidMessageError(
                    "a part leaves a gap or runs past the announced length", offset=part.offset, expected=position
                )
            position += len(part.data)
            await writer.take(part)
        await writer.drain()
    finally:
        await writer.settle()
    if sink.held < n_bytes:
        raise UploadTruncatedError(
            "the stream ended early; resume where it ended", received_bytes=sink.held, expected_bytes=n_bytes
        )


class _Writer:
    """Writes beside the stream. What arrives during a write goes with the next one: a hop to a thread has its price.

    Invariant: one write at a time, in order; what waits is written as soon as the write before it has ended.
    """

    def __init__(self, sink: UploadSink, note: Callable[[int], Awaitable[None]]) -> None:
        self._sink = sink
        self._note = note
        self._waiting: list[BlobPart] = []
        self._has_room = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    async def take(self, part: BlobPart) -> None:
        """Take a part over, once there is room. Raises what an earlier one failed with."""
        self._waiting.append(part)
        if self._writing is not None and len(self._waiting) >= MAX_WAITING:
            self._has_room.clear()
            if not self._writing.done():
                await self._has_room.wait()
        if self._writing is not None and self._writing.done():
            await self._writing
            self._writing = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def drain(self) -> None:
        """Wait until everything is kept. Raises what a part failed with."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Wait for what was begun, also where the stream was cut: a chunk that arrived whole is kept."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            # Asked for, so that asyncio does not call it forgotten: whoever awaited the chunk has raised it already,
            # and after a cut nobody needs it.
            _ = self._writing.cancelled() or self._writing.exception()

    async def _write(self) -> None:
        try:
            while self._waiting:
                parts, self._waiting = self._waiting, []
                self._has_room.set()
                await asyncio.to_thread(self._take_all, parts)
                await self._note(self._sink.held)
        finally:
            self._has_room.set()

    def _take_all(self, parts: list[BlobPart]) -> None:
        for part in parts:
            self._sink.take(part)
