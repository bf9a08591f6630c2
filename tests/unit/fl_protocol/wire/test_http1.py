from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.wire.http1 import (
    CallEnd,
    Frame,
    FrameInvalidError,
    FrameKind,
    FrameReader,
    FrameTooLargeError,
    call_end_from_headers,
    call_end_of,
    end_frame,
    http_status,
    message_frame,
    refusal_header,
)


def test_frames_are_kind_length_and_payload_byte_for_byte() -> None:
    assert message_frame(b"abc") == b"\x00\x00\x00\x00\x03abc"
    # gRPC's number of PERMISSION_DENIED is 7 (its status codes are listed in its documentation).
    assert end_frame(CallEnd(status=grpc.StatusCode.PERMISSION_DENIED, refusal=b"no")) == b"\x01\x00\x00\x00\x03\x07no"


@given(payloads=st.lists(st.binary(max_size=300), max_size=6), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_frames_are_read_in_any_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    body = b"".join(map(message_frame, payloads)) + end_frame(CallEnd(status=grpc.StatusCode.OK))
    reader, read, position, turn = FrameReader(max_bytes=300), [], 0, 0
    while position < len(body):
        size = cuts[turn % len(cuts)]
        read += reader.feed(body[position : position + size])
        position, turn = position + size, turn + 1
    assert [frame.payload for frame in read[:-1]] == payloads
    assert call_end_of(read[-1]) == CallEnd(status=grpc.StatusCode.OK)
    assert reader.has_ended


def test_stream_without_its_end_has_not_ended() -> None:
    reader = FrameReader(max_bytes=10)
    assert reader.feed(message_frame(b"abc")) == [Frame(kind=FrameKind.MESSAGE, payload=b"abc")]
    assert not reader.has_ended


def test_frame_over_its_bound_is_refused_by_its_announcement() -> None:
    with pytest.raises(FrameTooLargeError):
        FrameReader(max_bytes=10).feed(b"\x00\x00\x00\x00\x0b")


@pytest.mark.parametrize("body", [b"\x02\x00\x00\x00\x00", end_frame(CallEnd(status=grpc.StatusCode.OK)) + b"x"])
def test_bytes_that_are_no_frames_are_refused(body: bytes) -> None:
    with pytest.raises(FrameInvalidError):
        FrameReader(max_bytes=10).feed(body)


@pytest.mark.parametrize("payload", [b"", b"\xff"])
def test_end_without_a_status_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameInvalidError):
        call_end_of(Frame(kind=FrameKind.END, payload=payload))


def test_refusal_travels_in_headers() -> None:
    end = call_end_from_headers("NOT_FOUND", refusal_header(b"\x00\xff"))
    assert end == CallEnd(status=grpc.StatusCode.NOT_FOUND, refusal=b"\x00\xff")
    assert call_end_from_headers("", "") is None
    assert call_end_from_headers("Blocked by policy", "") is None
    assert call_end_from_headers("OK", "%%%") == CallEnd(status=grpc.StatusCode.OK)


def test_statuses_have_the_http_status_of_their_meaning() -> None:
    # RFC 9110, section 15.
    assert [http_status(grpc.StatusCode[name]) for name in ("OK", "UNAUTHENTICATED", "NOT_FOUND", "INTERNAL")] == [
        200,
        401,
        404,
        500,
    ]
