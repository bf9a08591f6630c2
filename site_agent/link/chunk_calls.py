"""The stub of a round's calls, whose two calls with a vector's bytes are encoded and decoded without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc.aio

from fl_protocol.wire.blob_chunks import bytes_from_upload_request, download_response_from_bytes
from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc
from site_agent.link.channel import CallChannel

if TYPE_CHECKING:
    from fl_protocol.wire.v1.round_pb2_grpc import RoundServiceAsyncStub as _Stub
else:
    _Stub = round_pb2_grpc.RoundServiceStub

_SERVICE = "/fl_protocol.wire.v1.RoundService"


class RoundCalls(_Stub):
    """The generated stub, but for UploadBlob and DownloadBlob."""

    def __init__(self, channel: grpc.aio.Channel | CallChannel) -> None:
        """Make the calls of a channel of either transport."""
        # The generated stubs ask no more of a channel than CallChannel offers; their types name gRPC's class.
        called = cast("grpc.aio.Channel", channel)
        super().__init__(called)
        # What they take and give is asked as the generated types are asked, and is either of the two.
        self.UploadBlob = cast(
            "grpc.aio.StreamUnaryMultiCallable[round_pb2.UploadBlobRequest, round_pb2.UploadBlobResponse]",
            called.stream_unary(
                f"{_SERVICE}/UploadBlob",
                request_serializer=bytes_from_upload_request,
                response_deserializer=round_pb2.UploadBlobResponse.FromString,
            ),
        )
        self.DownloadBlob = cast(
            "grpc.aio.UnaryStreamMultiCallable[round_pb2.DownloadBlobRequest, round_pb2.DownloadBlobResponse]",
            called.unary_stream(
                f"{_SERVICE}/DownloadBlob",
                request_serializer=round_pb2.DownloadBlobRequest.SerializeToString,
                response_deserializer=download_response_from_bytes,
            ),
        )
