"""The same calls over HTTP/1.1, for networks that break HTTP/2: frames, headers and statuses of the second transport.

A call is ``POST /fl_protocol.wire.v1.Service/Method``. One message is the body; a stream of messages is a body of
frames. A refusal travels in headers, or in the last frame where an answer had begun. docs/decisions/0019 says why.

    frame := kind (1 byte) | length (4 bytes, big endian) | payload
    kind 0: a message.  kind 1: the end; its payload is a status (1 byte, gRPC's number) and a Refusal, or nothing.

Invariant: a stream without its end frame was cut. Pure: bytes in, values out.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import grpc

from fl_protocol.errors import ProtocolError

MESSAGE_TYPE = "application/x-protobuf"
FRAMES_TYPE = "application/vnd.wardround.frames"
STATUS_HEADER = "wardround-status"
REFUSAL_HEADER = "wardround-refusal-bin"
TIMEOUT_HEADER = "wardround-timeout-ms"
PROBE_PATH = "/wardround/probe"
"""Answers 204 to a site that would be admitted, and refuses any other like every call."""
PART_BYTES = 8 << 20
"""The most bytes of one request's body: middleboxes buffer bodies, and what broke is sent again."""

_HEADER = struct.Struct("!BI")

_HTTP_STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_BY_NAME: Mapping[str, grpc.StatusCode] = {status.name: status for status in grpc.StatusCode}
_BY_NUMBER: Mapping[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}


class FrameInvalidError(ProtocolError):
    """Bytes that are no frames of this protocol."""

    code = "frame-invalid"


class FrameTooLargeError(FrameInvalidError):
    """A frame announces more bytes than its reader takes. Nothing of it was kept."""

    code = "frame-too-large"


class FrameKind(IntEnum):
    """What a frame holds."""

    MESSAGE = 0
    END = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame of a stream."""

    kind: FrameKind
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnd:
    """How a call ended: its status, and the bytes of the typed Refusal where it was refused."""

    status: grpc.StatusCode
    refusal: bytes = b""


def message_frame(payload: bytes) -> bytes:
    """A message as a frame."""
    return _HEADER.pack(FrameKind.MESSAGE, len(payload)) + payload


def end_frame(end: CallEnd) -> bytes:
    """The last frame of a stream."""
    payload = bytes([end.status.value[0]]) + end.refusal
    return _HEADER.pack(FrameKind.END, len(payload)) + payload


def call_end_of(frame: Frame) -> CallEnd:
    """What the last frame says.

    Raises:
        FrameInvalidError: it says no status.
    """
    status = _BY_NUMBER.get(frame.payload[0]) if frame.payload else None
    if frame.kind is not FrameKind.END or status is None:
        raise FrameInvalidError("the last frame of a stream holds no status")
    return CallEnd(status=status, refusal=frame.payload[1:])


class FrameReader:
    """Bytes in, as they arrive; whole frames out. Holds less than one frame and never more than ``max_bytes``."""

    def __init__(self, *, max_bytes: int) -> None:
        """``max_bytes`` bounds the payload of one frame."""
        self._max_bytes = max_bytes
        self._held = bytearray()
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the end frame was there. Where the bytes end before it, the stream was cut."""
        return self._has_ended

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete.

        Raises:
            FrameTooLargeError: a frame announces more than ``max_bytes``.
            FrameInvalidError: a frame of no known kind, or bytes behind the end.
        """
        if data and self._has_ended:
            raise FrameInvalidError("there are bytes behind the last frame")
        self._held += data
        frames: list[Frame] = []
        while len(self._held) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._held)
            if length > self._max_bytes:
                raise FrameTooLargeError("a frame is larger than it may be", n_bytes=length, limit=self._max_bytes)
            if kind not in (FrameKind.MESSAGE, FrameKind.END):
                raise FrameInvalidError("a frame is of no known kind", kind=kind)
            end = _HEADER.size + length
            if len(self._held) < end:
                break
            frames.append(Frame(kind=FrameKind(kind), payload=bytes(self._held[_HEADER.size : end])))
            del self._held[:end]
            if kind == FrameKind.END:
                self._has_ended = True
                if self._held:
                    raise FrameInvalidError("there are bytes behind the last frame")
                break
        return frames


def http_status(status: grpc.StatusCode) -> int:
    """The HTTP status beside a status of ours; 500 where HTTP has no better word."""
    return _HTTP_STATUS.get(status, 500)


def refusal_header(refusal: bytes) -> str:
    """A Refusal as a header's value."""
    return base64.b64encode(refusal).decode("ascii")


def call_end_from_headers(status: str, refusal: str) -> CallEnd | None:
    """How a call ended by its headers; None where the answer is not the coordinator's (a middlebox's page, say)."""
    known = _BY_NAME.get(status)
    if known is None:
        return None
    try:
        return CallEnd(status=known, refusal=base64.b64decode(refusal, validate=True))
    except (binascii.Error, ValueError):
        return CallEnd(status=known)
