"""The upload of a masked input: from where the coordinator stands, in 1 MiB chunks, until its signed receipt is here.

The bytes come from the spool, which was on the disk before the first of them left: every attempt sends the same ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.ids import SiteId
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.wire.convert import proto_from_exchange, signed_from_proto
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import AnswerInvalidError, CoordinatorUnavailableError
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient
from site_agent.link.receipts import verify_receipt
from site_agent.link.refusals import typed_errors

_SETUP_S = 30.0
_SLOWEST_BYTES_PER_S = 64 * 1024
"""Half a megabit a second: below it an attempt is given up and resumed, which loses nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One masked input: the signed header M5 as it was journalled, and the spool."""

    context: ExchangeContext
    site_id: SiteId
    header: bytes
    path: Path
    n_bytes: int


class Uploader:
    """Sends masked inputs. Holds no bytes of its own but one chunk."""

    def __init__(
        self, client: CoordinatorClient, *, coordinator_spki: bytes, backoff: Backoff, n_attempts: int = 8
    ) -> None:
        """Take the seams; ``n_attempts`` without any new byte arriving are a failure."""
        self._client = client
        self._coordinator_spki = coordinator_spki
        self._backoff = backoff
        self._n_attempts = n_attempts

    async def upload(self, upload: Upload) -> SignedBody:
        """Send what is missing until there is a receipt, and verify it.

        Raises:
            CoordinatorUnavailableError: the network failed ``n_attempts`` times without progress.
            CoordinatorRefusedError: the coordinator will not have this upload (late, other content).
            ReceiptInvalidError: the receipt does not prove the upload.
            AnswerInvalidError: the coordinator claims more bytes than there are.
        """
        failures, furthest = 0, 0
        while True:
            try:
                status = await self._client.query_upload(upload.context)
                if status.received_bytes > upload.n_bytes:
                    raise AnswerInvalidError("the coordinator holds more than was sent", n_bytes=upload.n_bytes)
                receipt = status.receipt or await self._send_from(upload, status.received_bytes)
                break
            except CoordinatorUnavailableError:
                held = await self._held_bytes(upload)
                failures = 0 if held > furthest else failures + 1
                furthest = max(furthest, held)
                if failures >= self._n_attempts:
                    raise
                await asyncio.sleep(self._backoff.next_wait_s())
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

    async def _held_bytes(self, upload: Upload) -> int:
        try:
            return (await self._client.query_upload(upload.context)).received_bytes
        except CoordinatorUnavailableError:
            return 0

    async def _send_from(self, upload: Upload, offset: int) -> SignedBody:
        timeout_s = _SETUP_S + (upload.n_bytes - offset) / _SLOWEST_BYTES_PER_S
        with typed_errors("UploadBlob"):
            answer = await self._client.rounds.UploadBlob(_parts(upload, offset), timeout=timeout_s)
            return signed_from_proto(answer.receipt)


async def _parts(upload: Upload, offset: int) -> AsyncIterator[round_pb2.UploadBlobRequest]:
    yield round_pb2.UploadBlobRequest(
        header=round_pb2.UploadHeader(
            exchange=proto_from_exchange(upload.context), masked_input=upload.header, offset=offset
        )
    )
    with upload.path.open("rb") as stream:
        stream.seek(offset)
        position = offset
        # Up to the next chunk boundary first, so that a resumed upload ends its chunks where the digest tree does.
        size = CHUNK_BYTES - offset % CHUNK_BYTES
        while data := await asyncio.to_thread(stream.read, size):
            yield round_pb2.UploadBlobRequest(chunk=round_pb2.BlobChunk(offset=position, data=data))
            position += len(data)
            size = CHUNK_BYTES
