"""The download of a blob by its digest: resumed where the last attempt ended, and never believed unverified."""

from __future__ import annotations

import asyncio
import hashlib

from fl_protocol.ids import RunId
from fl_protocol.wire.v1 import round_pb2
from site_agent.errors import BlobInvalidError, CoordinatorUnavailableError
from site_agent.link.backoff import Backoff
from site_agent.link.client import CoordinatorClient
from site_agent.link.refusals import typed_errors

_SETUP_S = 30.0
_SLOWEST_BYTES_PER_S = 64 * 1024


class Downloader:
    """Fetches blobs of a run: its initial state and its published sums."""

    def __init__(self, client: CoordinatorClient, *, backoff: Backoff, n_attempts: int = 8) -> None:
        """Take the seams; ``n_attempts`` without any new byte are a failure."""
        self._client = client
        self._backoff = backoff
        self._n_attempts = n_attempts

    async def download(self, run_id: RunId, sha256: str, *, max_bytes: int) -> bytes:
        """The blob whose SHA-256 is ``sha256``.

        Raises:
            BlobInvalidError: the bytes are others, or more than ``max_bytes``.
            CoordinatorUnavailableError: the network failed ``n_attempts`` times without progress.
            CoordinatorRefusedError: the coordinator does not give it.
        """
        received = bytearray()
        failures = 0
        while True:
            before = len(received)
            try:
                await self._receive(run_id, sha256, received=received, max_bytes=max_bytes)
                break
            except CoordinatorUnavailableError:
                failures = 0 if len(received) > before else failures + 1
                if failures >= self._n_attempts:
                    raise
                await asyncio.sleep(self._backoff.next_wait_s())
        self._backoff.reset()
        if hashlib.sha256(received).hexdigest() != sha256:
            raise BlobInvalidError("the downloaded bytes are not the ones that were named", sha256=sha256)
        return bytes(received)

    async def _receive(self, run_id: RunId, sha256: str, *, received: bytearray, max_bytes: int) -> None:
        timeout_s = _SETUP_S + (max_bytes - len(received)) / _SLOWEST_BYTES_PER_S
        request = round_pb2.DownloadBlobRequest(run_id=run_id, sha256=sha256, offset=len(received))
        with typed_errors("DownloadBlob"):
            async for answer in self._client.rounds.DownloadBlob(request, timeout=timeout_s):
                chunk = answer.chunk
                if chunk.offset != len(received):
                    raise BlobInvalidError("a chunk does not continue the blob", sha256=sha256, offset=chunk.offset)
                if len(received) + len(chunk.data) > max_bytes:
                    raise BlobInvalidError("the blob is larger than it may be", sha256=sha256, max_bytes=max_bytes)
                received += chunk.data
