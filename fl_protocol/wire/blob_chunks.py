"""The two messages that carry a vector's bytes, encoded and decoded with one copy instead of five.

``UploadBlobRequest`` and ``DownloadBlobResponse`` differ in the number of the field that holds the chunk only. What is
written here is protobuf's own encoding, byte for byte; what is read and is not exactly that (a header, fields in
another order, unknown ones) goes through protobuf. So either end may be a peer that knows only protobuf.

    message := tag(chunk) length BlobChunk
    BlobChunk := 08 varint(offset)  12 length data  1a length leaf_sha256  22 length prefix_sha256, each if not empty

Pure: bytes in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_protocol.wire.v1 import round_pb2

_UPLOAD_TAG = 0x12
_DOWNLOAD_TAG = 0x0A
_OFFSET_TAG = 0x08
_DATA_TAG = 0x12
_LEAF_TAG = 0x1A
_PREFIX_TAG = 0x22
_MAX_VARINT_BYTES = 10
_MAX_OFFSET = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WireChunk:
    """A BlobChunk. ``data`` may be a view into the message that it came in."""

    offset: int
    data: bytes | memoryview
    leaf_sha256: bytes = b""
    prefix_sha256: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkMessage:
    """Either message, when it holds a chunk. Asked as one asks the protobuf message."""

    chunk: WireChunk
    n_bytes: int = 0
    """Its length as it came."""

    def WhichOneof(self, oneof: Literal["part"]) -> Literal["chunk"]:  # noqa: N802 # protobuf's word
        """What the message holds."""
        del oneof
        return "chunk"

    def ByteSize(self) -> int:  # noqa: N802 # protobuf's word
        """Its length as it came."""
        return self.n_bytes


UploadRequest = round_pb2.UploadBlobRequest | ChunkMessage
DownloadResponse = round_pb2.DownloadBlobResponse | ChunkMessage


def bytes_from_upload_request(message: UploadRequest) -> bytes:
    """An UploadBlobRequest for the wire."""
    return _encode(_UPLOAD_TAG, message.chunk) if isinstance(message, ChunkMessage) else message.SerializeToString()


def bytes_from_download_response(message: DownloadResponse) -> bytes:
    """A DownloadBlobResponse for the wire."""
    return _encode(_DOWNLOAD_TAG, message.chunk) if isinstance(message, ChunkMessage) else message.SerializeToString()


def upload_request_from_bytes(data: bytes) -> UploadRequest:
    """An UploadBlobRequest from the wire. Raises DecodeError (of protobuf) where it is none."""
    chunk = _decode(_UPLOAD_TAG, data)
    if chunk is None:
        return round_pb2.UploadBlobRequest.FromString(data)
    return ChunkMessage(chunk=chunk, n_bytes=len(data))


def download_response_from_bytes(data: bytes) -> DownloadResponse:
    """A DownloadBlobResponse from the wire. Raises DecodeError (of protobuf) where it is none."""
    chunk = _decode(_DOWNLOAD_TAG, data)
    if chunk is None:
        return round_pb2.DownloadBlobResponse.FromString(data)
    return ChunkMessage(chunk=chunk, n_bytes=len(data))


def _encode(tag: int, chunk: WireChunk) -> bytes:
    if not 0 <= chunk.offset <= _MAX_OFFSET:
        raise ValueError("an offset has 64 bits")
    before = bytes([_OFFSET_TAG]) + _varint(chunk.offset) if chunk.offset else b""
    if len(chunk.data):
        before += bytes([_DATA_TAG]) + _varint(len(chunk.data))
    after = _field(_LEAF_TAG, chunk.leaf_sha256) + _field(_PREFIX_TAG, chunk.prefix_sha256)
    length = len(before) + len(chunk.data) + len(after)
    return b"".join((bytes([tag]), _varint(length), before, chunk.data, after))


def _field(tag: int, value: bytes) -> bytes:
    return bytes([tag]) + _varint(len(value)) + value if value else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _OtherEncodingError(Exception):
    """Not what ``_encode`` writes: protobuf decides what it is."""


def _decode(tag: int, message: bytes) -> WireChunk | None:
    """The chunk, where the message is what ``_encode`` writes; None where protobuf has to look."""
    reader = _Reader(message)
    try:
        if not reader.takes(tag) or reader.varint() != len(message) - reader.position:
            return None
        offset = reader.varint() if reader.takes(_OFFSET_TAG) else 0
        data = reader.field() if reader.takes(_DATA_TAG) else memoryview(b"")
        leaf = bytes(reader.field()) if reader.takes(_LEAF_TAG) else b""
        prefix = bytes(reader.field()) if reader.takes(_PREFIX_TAG) else b""
    except _OtherEncodingError:
        return None
    if reader.position != len(message):
        return None
    return WireChunk(offset=offset, data=data, leaf_sha256=leaf, prefix_sha256=prefix)


class _Reader:
    """Where one is in a message."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self.position = 0

    def takes(self, tag: int) -> bool:
        """Step over that tag, if it is what follows."""
        is_here = self.position < len(self._message) and self._message[self.position] == tag
        self.position += is_here
        return is_here

    def varint(self) -> int:
        value = shift = 0
        for byte in self._message[self.position : self.position + _MAX_VARINT_BYTES]:
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > _MAX_OFFSET:
                    break
                return value
            shift += 7
        raise _OtherEncodingError

    def field(self) -> memoryview:
        n_bytes = self.varint()
        end = self.position + n_bytes
        if end > len(self._message):
            raise _OtherEncodingError
        found = memoryview(self._message)[self.position : end]
        self.position = end
        return found
