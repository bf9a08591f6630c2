"""How the two messages that carry a vector's bytes are read and written, on either transport: without copies.

The generated code names protobuf's own encoder for every method. Both listeners ask here instead, for each method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from fl_protocol.wire.blob_chunks import bytes_from_download_response, upload_request_from_bytes

TRequest = TypeVar("TRequest")
TResponse = TypeVar("TResponse")

_DECODERS: Mapping[str, Callable[[bytes], object]] = {"UploadBlob": upload_request_from_bytes}
_ENCODERS: Mapping[str, Callable[..., bytes]] = {"DownloadBlob": bytes_from_download_response}


def request_decoder(method: str, generated: Callable[[bytes], TRequest] | None) -> Callable[[bytes], TRequest] | None:
    """What reads a method's requests, given what the generated code names."""
    return cast("Callable[[bytes], TRequest] | None", _DECODERS.get(method, generated))


def response_encoder(
    method: str, generated: Callable[[TResponse], bytes] | None
) -> Callable[[TResponse], bytes] | None:
    """What writes a method's answers, given what the generated code names."""
    return _ENCODERS.get(method, generated)
