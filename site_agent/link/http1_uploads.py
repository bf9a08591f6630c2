"""An endless stream of requests as bounded ones: middleboxes buffer bodies, limit them, and cut long ones.

Every part begins with the upload's header, at the offset that the next chunk has. To all parts but the last the
coordinator answers that the stream ended early and how much it holds, which is what a part is meant to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import grpc

from fl_protocol.wire import http1
from fl_protocol.wire.blob_chunks import UploadRequest, bytes_from_upload_request
from fl_protocol.wire.v1 import round_pb2
from site_agent.link.refusals import CallFailedError

_MORE_TO_COME = "upload-truncated"


class SendPart(Protocol):
    """Sends one body and returns the answer's bytes. Raises CallFailedError."""

    async def __call__(self, part: AsyncIterator[bytes], /) -> bytes:
        """Send."""
        ...


async def send_in_parts(requests: AsyncIterator[UploadRequest], *, send: SendPart) -> bytes:
    """Send an upload's header and chunks, in as many requests as they need. Holds one chunk.

    Returns:
        The bytes of the answer that ended it.

    Raises:
        CallFailedError: a part was refused, or did not arrive; what the coordinator holds, it keeps.
    """
    source = aiter(requests)
    header = await anext(source, None)
    if not isinstance(header, round_pb2.UploadBlobRequest):
        raise CallFailedError(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with its header")
    upload = _Rest(source, header=header, coming=await anext(source, None))
    while True:
        try:
            return await send(upload.part())
        except CallFailedError as error:
            is_part = error.refusal is not None and error.refusal.code == _MORE_TO_COME
            if not is_part or upload.coming is None:
                raise


class _Rest:
    """What has not been sent. Invariant: ``coming`` is the first chunk of it; None once there is none."""

    def __init__(
        self,
        source: AsyncIterator[UploadRequest],
        *,
        header: round_pb2.UploadBlobRequest,
        coming: UploadRequest | None,
    ) -> None:
        self._source = source
        self._header = header
        self.coming = coming

    async def part(self) -> AsyncIterator[bytes]:
        """One body: the header at the right offset, as many chunks as fit, the end."""
        header = round_pb2.UploadBlobRequest()
        header.CopyFrom(self._header)
        if self.coming is not None:
            header.header.offset = self.coming.chunk.offset
        frame = http1.message_frame(header.SerializeToString())
        n_bytes = len(frame)
        yield frame
        while self.coming is not None:
            frame = http1.message_frame(bytes_from_upload_request(self.coming))
            if n_bytes + len(frame) > http1.PART_BYTES:
                break
            n_bytes += len(frame)
            yield frame
            self.coming = await anext(self._source, None)
        yield http1.end_frame(http1.CallEnd(status=grpc.StatusCode.OK))
