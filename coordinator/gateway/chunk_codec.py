"""How the two messages that carry a vector's bytes are read and written, on either transport: without copies.

The generated code names protobuf's own encoder for every method. Both listeners ask here instead, for each method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from google.protobuf.message import DecodeError

from fl_protocol.wire.blob_chunks import bytes_from_download_response, upload_request_from_bytes

TRequest = TypeVar("TRequest")
TResponse = TypeVar("TResponse")

_DECODERS: Mapping[str, Callable[[bytes], object]] = {"UploadBlob": upload_request_from_bytes}
_ENCODERS: Mapping[str, Callable[..., bytes]] = {"DownloadBlob": bytes_from_download_response}


@dataclass(frozen=True, slots=True)
class UnreadableRequest:
    """Bytes that are no message of their method, in the place of one.

    Safety: gRPC answers a decoder that raises with UNKNOWN and the error's own words, before anybody asked who calls.
    As a value, they come to the gate, which refuses them as it refuses everything else.
    """


def forgiving(decode: Callable[[bytes], TRequest] | None) -> Callable[[bytes], TRequest | UnreadableRequest] | None:
    """A decoder that gives ``UnreadableRequest`` where ``decode`` raises protobuf's DecodeError."""
    if decode is None:
        return None

    def read(data: bytes) -> TRequest | UnreadableRequest:
        try:
            return decode(data)
        except DecodeError:
            return UnreadableRequest()

    return read


def request_decoder(method: str, generated: Callable[[bytes], TRequest] | None) -> Callable[[bytes], TRequest] | None:
    """What reads a method's requests, given what the generated code names."""
    return cast("Callable[[bytes], TRequest] | None", _DECODERS.get(method, generated))


def response_encoder(
    method: str, generated: Callable[[TResponse], bytes] | None
) -> Callable[[TResponse], bytes] | None:
    """What writes a method's answers, given what the generated code names."""
    return _ENCODERS.get(method, generated)
