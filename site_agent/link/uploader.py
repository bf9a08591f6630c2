"""The upload of a masked input: from where the coordinator stands, in 1 MiB chunks, until its signed receipt is here.

The bytes come from the spool, which was on the disk before the first of them left: every attempt sends the same ones.
It stays there until the round is settled or abandoned, long after the receipt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from fl_protocol.codec import merkle
from fl_protocol.codec.chunks import CHUNK_BYTES, n_chunks
from fl_protocol.ids import SiteId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.telemetry import site_metrics as metrics
from fl_protocol.telemetry.meter import Meter
from fl_protocol.wire.blob_chunks import ChunkMessage, UploadRequest, WireChunk
from fl_protocol.wire.convert import proto_from_exchange, signed_from_proto
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import AnswerInvalidError, CoordinatorRefusedError, CoordinatorUnavailableError, LinkError
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient
from site_agent.link.receipts import verify_receipt
from site_agent.link.refusals import typed_errors
from site_agent.link.transfer import IDLE_DEADLINE_S, Patience, Pulse, moving_call

log = structlog.get_logger(__name__)

_RESUMABLE = frozenset(
    {
        "chunk-altered",
        "blob-offset",
        "upload-truncated",
        "upload-taken-over",
        "blob-store-full",
        "upload-altered",
        # The certificate was renewed meanwhile: what is left goes under the new one.
        "certificate-ended",
    }
)
"""Refusals after which the same bytes are sent from where the coordinator stands."""
_READ_AT_ONCE = 4
_ALTERED = "upload-altered"
_CHUNK_ALTERED = "chunk-altered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One masked input: the signed header M5 as it was journalled, and the spool.

    The spool is the vector and, behind it, the leaf hashes of its chunks; one of an older version lacks them.
    ``is_new``: it was masked just now, and nothing of it has left yet: nobody need be asked how far it is.
    """

    context: ExchangeContext
    site_id: SiteId
    header: bytes
    path: Path
    n_bytes: int
    is_new: bool = False


class Uploader:
    """Sends masked inputs. Holds no bytes of its own but eight chunks."""

    def __init__(
        self,
        client: CoordinatorClient,
        *,
        coordinator_spki: bytes,
        backoff: Backoff,
        idle_deadline_s: float = IDLE_DEADLINE_S,
        meter: Meter | None = None,
    ) -> None:
        """Take the seams; ``idle_deadline_s`` without any new byte arriving is a failure."""
        self._meter = meter or Meter(metrics.SITE_METRICS)
        self._client = client
        self._coordinator_spki = coordinator_spki
        self._backoff = backoff
        self._idle_deadline_s = idle_deadline_s

    async def upload(self, upload: Upload) -> SignedBody:
        """Send what is missing until there is a receipt, and verify it.

        Raises:
            TransferIdleError: no new byte came through for the idle deadline. The instruction may be followed again.
            CoordinatorRefusedError: the coordinator will not have this upload (late, other content, altered twice).
            ReceiptInvalidError: the receipt does not prove the upload.
            AnswerInvalidError: the coordinator claims more bytes than there are.
        """
        patience = Patience(self._backoff, idle_s=self._idle_deadline_s)
        n_altered = 0
        is_asked = not upload.is_new
        leaves = await asyncio.to_thread(_spooled_leaves, upload)
        while True:
            try:
                receipt = await self._attempt(upload, leaves, patience, is_asked=is_asked)
                break
            except (CoordinatorUnavailableError, CoordinatorRefusedError) as error:
                is_asked = True
                n_altered += _is_refusal(error, _ALTERED)
                if _is_refusal(error, _CHUNK_ALTERED):
                    # Altered on its way or on this disk: from now on each chunk's leaf is taken as it is read.
                    leaves = ()
                if not _may_resume(error) or n_altered > 1:
                    raise
                self._meter.count(metrics.UPLOAD_RESUMES)
                log.info("upload_interrupted", run_id=upload.context.run_id, cause=str(error))
                await patience.wait(error)
        self._backoff.reset()
        verify_receipt(
            receipt,
            coordinator_spki=self._coordinator_spki,
            site_id=upload.site_id,
            context=upload.context,
            header=upload.header,
            n_bytes=upload.n_bytes,
        )
        return receipt

    async def _attempt(
        self, upload: Upload, leaves: Sequence[bytes], patience: Patience, *, is_asked: bool
    ) -> SignedBody:
        """Ask how far it is, and send the rest."""
        if not is_asked:
            patience.reached(0)
            return await self._send_from(upload, leaves, 0)
        status = await self._client.query_upload(upload.context)
        if status.received_bytes > upload.n_bytes:
            raise AnswerInvalidError("the coordinator holds more than was sent", n_bytes=upload.n_bytes)
        patience.reached(status.received_bytes)
        return status.receipt or await self._send_from(upload, leaves, status.received_bytes)

    def _sent(self, pulse: Pulse) -> Callable[[int], None]:
        def sent(n_bytes: int) -> None:
            pulse.beat()
            self._meter.count(metrics.UPLOAD_BYTES, by=n_bytes)

        return sent

    async def _send_from(self, upload: Upload, leaves: Sequence[bytes], offset: int) -> SignedBody:
        async with moving_call("UploadBlob", idle_s=self._idle_deadline_s) as pulse:
            with typed_errors("UploadBlob"):
                parts = cast(
                    "AsyncIterator[round_pb2.UploadBlobRequest]", _parts(upload, leaves, offset, self._sent(pulse))
                )
                # No time-out of its own: it ends by progress.
                answer = await self._client.rounds.UploadBlob(parts, timeout=None)
                return signed_from_proto(answer.receipt)


def _is_refusal(error: LinkError, code: str) -> bool:
    return isinstance(error, CoordinatorRefusedError) and error.refusal_code == code


def _may_resume(error: LinkError) -> bool:
    return not isinstance(error, CoordinatorRefusedError) or error.refusal_code in _RESUMABLE


async def _parts(
    upload: Upload, leaves: Sequence[bytes], offset: int, sent: Callable[[int], None]
) -> AsyncIterator[UploadRequest]:
    yield round_pb2.UploadBlobRequest(
        header=round_pb2.UploadHeader(
            exchange=proto_from_exchange(upload.context), masked_input=upload.header, offset=offset
        )
    )
    with upload.path.open("rb", buffering=0) as stream:
        stream.seek(offset)
        spool = _Spool(stream=stream, n_bytes=upload.n_bytes, leaves=leaves)
        reading = asyncio.create_task(asyncio.to_thread(spool.read_chunks, offset))
        try:
            while chunks := await reading:
                # The next ones are read while these are on their way; there are never more.
                end = chunks[-1].offset + len(chunks[-1].data)
                reading = asyncio.create_task(asyncio.to_thread(spool.read_chunks, end))
                for chunk in chunks:
                    # Being asked for another chunk means that the line has taken the last one.
                    sent(len(chunk.data))
                    yield ChunkMessage(chunk=chunk)
        finally:
            # The file is closed only when no thread reads it any more.
            await asyncio.wait([reading])
            _ = reading.cancelled() or reading.exception()
    sent(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spool:
    """The vector on the disk, and the leaves of its chunks where they are known."""

    stream: BinaryIO
    n_bytes: int
    leaves: Sequence[bytes]

    def read_chunks(self, offset: int) -> list[WireChunk]:
        """The next chunks; none at the end of the vector."""
        chunks: list[WireChunk] = []
        while len(chunks) < _READ_AT_ONCE and (chunk := self._read_chunk(offset)) is not None:
            chunks.append(chunk)
            offset += len(chunk.data)
        return chunks

    def _read_chunk(self, offset: int) -> WireChunk | None:
        # Up to the next chunk boundary first, so that a resumed upload ends its chunks where the digest tree does.
        data = self.stream.read(min(CHUNK_BYTES - offset % CHUNK_BYTES, self.n_bytes - offset))
        if not data:
            return None
        is_known = self.leaves and offset % CHUNK_BYTES == 0
        leaf = self.leaves[offset // CHUNK_BYTES] if is_known else merkle.leaf_hash(data)
        return WireChunk(offset=offset, data=data, leaf_sha256=leaf)


def _spooled_leaves(upload: Upload) -> tuple[bytes, ...]:
    """The leaves behind the vector; none where the spool is older, and then they are taken while it is sent.

    Safety: nothing rests on them. The coordinator computes them from what arrives, and holds the root that was signed.
    """
    n_leaves = n_chunks(upload.n_bytes, CHUNK_BYTES)
    with upload.path.open("rb") as stream:
        stream.seek(upload.n_bytes)
        behind = stream.read()
    if len(behind) != n_leaves * merkle.HASH_BYTES:
        return ()
    return tuple(behind[at : at + merkle.HASH_BYTES] for at in range(0, len(behind), merkle.HASH_BYTES))
