"""The download of a blob by its digest: resumed where the last attempt ended, and never believed unverified.

A large blob goes to a file of the state folder, chunk by chunk, so that memory is bounded and an agent that was
restarted goes on where it was. What comes back is that file, mapped; it has no name any more and ends with the mapping.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from fl_protocol.ids import RunId
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import (
    BlobInvalidError,
    ChunkInvalidError,
    CoordinatorRefusedError,
    CoordinatorUnavailableError,
)
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient
from site_agent.link.download_sink import ChunkBytes, ChunkDigests, DownloadedBytes, DownloadSink, FileSink, MemorySink
from site_agent.link.refusals import typed_errors
from site_agent.link.transfer import IDLE_DEADLINE_S, Patience, moving_call

log = structlog.get_logger(__name__)

_IN_MEMORY_BYTES = 4 << 20
"""Up to this length a blob is received in memory: sending it again costs less than a file."""


_PAST_THE_END = "blob-offset"
_MAX_WAITING = 4


class Downloader:
    """Fetches blobs of a run: its initial state and its published sums."""

    def __init__(
        self,
        client: CoordinatorClient,
        *,
        backoff: Backoff,
        folder: Path,
        idle_deadline_s: float = IDLE_DEADLINE_S,
        in_memory_bytes: int = _IN_MEMORY_BYTES,
    ) -> None:
        """Take the seams; ``folder`` is for what is on its way, and ``idle_deadline_s`` without a byte is a failure."""
        self._client = client
        self._backoff = backoff
        self._folder = folder
        self._idle_deadline_s = idle_deadline_s
        self._in_memory_bytes = in_memory_bytes

    async def download(self, run_id: RunId, sha256: str, *, max_bytes: int) -> DownloadedBytes:
        """The blob whose SHA-256 is ``sha256``.

        Raises:
            BlobInvalidError: the bytes are others, or more than ``max_bytes``; they were thrown away.
            TransferIdleError: no new byte came through for the idle deadline; what came is kept.
            CoordinatorRefusedError: the coordinator does not give it.
        """
        sink: DownloadSink = MemorySink()
        if max_bytes > self._in_memory_bytes:
            sink = await asyncio.to_thread(FileSink, self._folder, sha256)
        try:
            await self._fetch(run_id, sha256, sink=sink, max_bytes=max_bytes)
            return await asyncio.to_thread(sink.take)
        except BlobInvalidError:
            await asyncio.to_thread(sink.discard)
            raise
        finally:
            await asyncio.to_thread(sink.close)

    async def _fetch(self, run_id: RunId, sha256: str, *, sink: DownloadSink, max_bytes: int) -> None:
        patience = Patience(self._backoff, idle_s=self._idle_deadline_s)
        while True:
            patience.reached(sink.held)
            try:
                await self._receive(run_id, sha256, sink=sink, max_bytes=max_bytes)
                break
            except (CoordinatorUnavailableError, ChunkInvalidError) as error:
                log.info("download_interrupted", run_id=run_id, sha256=sha256, n_bytes=sink.held, cause=str(error))
                patience.reached(sink.held)
                await patience.wait(error)
            except CoordinatorRefusedError as error:
                if error.refusal_code == _PAST_THE_END:
                    raise BlobInvalidError("more is held of the blob than it has", sha256=sha256) from error
                raise
        self._backoff.reset()
        if sink.sha256() != sha256:
            raise BlobInvalidError("the downloaded bytes are not the ones that were named", sha256=sha256)

    async def _receive(self, run_id: RunId, sha256: str, *, sink: DownloadSink, max_bytes: int) -> None:
        request = round_pb2.DownloadBlobRequest(run_id=run_id, sha256=sha256, offset=sink.held)
        position = sink.held
        writer = _Writer(sink)
        try:
            async with moving_call("DownloadBlob", idle_s=self._idle_deadline_s) as pulse:
                with typed_errors("DownloadBlob"):
                    async for answer in self._client.rounds.DownloadBlob(request, timeout=None):
                        pulse.beat()
                        chunk = answer.chunk
                        if chunk.offset != position:
                            message = "a chunk does not continue the blob"
                            raise BlobInvalidError(message, sha256=sha256, offset=chunk.offset)
                        position += len(chunk.data)
                        if position > max_bytes:
                            message = "the blob is larger than it may be"
                            raise BlobInvalidError(message, sha256=sha256, max_bytes=max_bytes)
                        said = ChunkDigests(leaf_sha256=chunk.leaf_sha256, prefix_sha256=chunk.prefix_sha256)
                        # On the disk while the next ones arrive.
                        await writer.take(chunk.data, said)
            await writer.drain()
        finally:
            await writer.settle()


class _Writer:
    """Writes beside the stream. What arrives during a write goes with the next one: a hop to a thread has its price.

    Invariant: one write at a time, in order; what waits is written as soon as the write before it has ended. There are
    twice ``_MAX_WAITING`` chunks in memory at most.
    """

    def __init__(self, sink: DownloadSink) -> None:
        self._sink = sink
        self._waiting: list[tuple[ChunkBytes, ChunkDigests]] = []
        self._has_room = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    async def take(self, data: ChunkBytes, said: ChunkDigests) -> None:
        """Take a chunk over, once there is room. Raises what an earlier one failed with."""
        self._waiting.append((data, said))
        if self._writing is not None and len(self._waiting) >= _MAX_WAITING:
            self._has_room.clear()
            if not self._writing.done():
                await self._has_room.wait()
        if self._writing is not None and self._writing.done():
            await self._writing
            self._writing = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def drain(self) -> None:
        """Wait until everything is kept. Raises what a chunk failed with."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Wait for what was begun, also where the stream was cut; how it ended, whoever awaited it knows."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            _ = self._writing.cancelled() or self._writing.exception()

    async def _write(self) -> None:
        try:
            while self._waiting:
                chunks, self._waiting = self._waiting, []
                self._has_room.set()
                await asyncio.to_thread(self._add_all, chunks)
        finally:
            self._has_room.set()

    def _add_all(self, chunks: list[tuple[ChunkBytes, ChunkDigests]]) -> None:
        for data, said in chunks:
            self._sink.add(data, said)
