"""The bytes of one upload's stream: a chunk is checked and kept while the next one arrives. Knows no table."""

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
    """Take the parts, one on the disk while the next arrives: two chunks of a stream are in memory, never more.

    Args:
        sink: where they go.
        parts: in order, without gaps.
        offset: where the first part belongs.
        n_bytes: the announced length of the whole.
        note: told how much is held, after each chunk.

    Raises:
        BlobOffsetError: the stream does not begin where the upload stands.
        InvalidMessageError: a part leaves a gap or runs past the length.
        UploadTruncatedError: the stream ended early.
        ChunkAlteredError, BlobError: see ``UploadSink.take``.
    """
    if offset > sink.held:
        raise BlobOffsetError("this is not where the upload stands", offset=offset, held=sink.held)
    position = offset
    writing: asyncio.Task[int] | None = None
    await note(sink.held)
    try:
        async for part in parts:
            if part.offset != position or position + len(part.data) > n_bytes:
                raise InvalidMessageError(
                    "a part leaves a gap or runs past the announced length", offset=part.offset, expected=position
                )
            position += len(part.data)
            if writing is not None:
                await note(await asyncio.shield(writing))
            writing = asyncio.create_task(asyncio.to_thread(sink.take, part))
        if writing is not None:
            await note(await asyncio.shield(writing))
    finally:
        # Also where the stream was cut: a chunk that arrived whole is kept.
        if writing is not None:
            await asyncio.wait([writing])
            _failure_of(writing)
    if sink.held < n_bytes:
        raise UploadTruncatedError(
            "the stream ended early; resume where it ended", received_bytes=sink.held, expected_bytes=n_bytes
        )


def _failure_of(writing: asyncio.Task[int]) -> BaseException | None:
    # Asked for, so that asyncio does not call it forgotten: whoever awaited the chunk has raised it already, and after
    # a cut nobody needs it.
    return None if writing.cancelled() else writing.exception()
