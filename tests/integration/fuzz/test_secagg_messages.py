"""The messages of SA1 as a hostile party may send them: each reader takes exactly what its writer wrote, or refuses.

The seeds are what was really sent in a recorded run, taken apart by the readers themselves: a byte string belongs to
every reader that accepts it and gives it back.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fl_protocol.errors import ProtocolError
from fl_protocol.secagg.messages import (
    Complaint,
    Confirmation,
    DealtShare,
    DealtShares,
    ExchangeResult,
    KeyAdvertisement,
    Reveal,
    RevealedShare,
    ShareHeader,
    ShareKeys,
    ShareLeaf,
    SignedList,
    UploadHeader,
)
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.wire.http1 import FrameInvalidError, FrameReader, message_frame
from fl_protocol.wire.v1 import round_pb2
from tests.integration.fuzz.mutations import Mutator, all_methods, transcript

N_EACH = 10_000
READERS: tuple[type[Any], ...] = (
    Complaint,
    Confirmation,
    DealtShare,
    DealtShares,
    ExchangeResult,
    KeyAdvertisement,
    Reveal,
    RevealedShare,
    RoundManifest,
    ShareHeader,
    ShareKeys,
    ShareLeaf,
    SignedBody,
    SignedList,
    UploadHeader,
)
NEVER_SENT = {Complaint}
"""Nobody lied in the recorded run, so that nobody complained."""


def test_every_reader_of_the_room_is_tried() -> None:
    import fl_protocol.secagg.messages as room

    with_readers = {value for value in vars(room).values() if isinstance(value, type) and hasattr(value, "decode")}
    assert with_readers <= set(READERS)


def bytes_in(message: Message) -> Iterator[bytes]:
    """Every byte string of a message, however deep."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        for one in values:
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                yield from bytes_in(one)
            elif field.type == FieldDescriptor.TYPE_BYTES:
                yield one


def parts_of(data: bytes) -> Iterator[bytes]:
    """What ``pack`` put together: each field, and what is in it; nothing where the bytes are no such thing."""
    position, fields = 0, []
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        fields.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    if position == len(data):
        for field in fields:
            yield field
            yield from parts_of(field)


@cache
def said() -> tuple[bytes, ...]:
    """All byte strings of the recorded run, and what they are made of."""
    found: set[bytes] = set()
    kinds = {method.path: method.request for method in all_methods()}
    for record in transcript()["records"]:
        if "path" not in record:
            continue
        messages = [kinds[record["path"]].FromString(base64.b64decode(one)) for one in record["requests"]]
        if record["path"].endswith("/PollAssignment"):
            answers = [base64.b64decode(one) for one in record["responses"]]
            messages += [round_pb2.PollAssignmentResponse.FromString(one) for one in answers]
        for message in messages:
            for content in bytes_in(message):
                found |= {content, *parts_of(content)}
    return tuple(sorted(one for one in found if one))


def seeds_of(reader: type[Any]) -> list[bytes]:
    seeds = []
    for content in said():
        try:
            read = reader.decode(content)
        except ProtocolError:
            continue
        if read.encode() == content:
            seeds.append(content)
    return seeds


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_reader_takes_what_its_writer_wrote_or_refuses_with_a_typed_error(reader: type[Any]) -> None:
    seeds = seeds_of(reader)
    assert seeds or reader in NEVER_SENT
    mutator, draw = Mutator(20260304, ()), random.Random(20260305)
    changes: tuple[Callable[[bytes], bytes], ...] = (mutator.flip, mutator.cut, lambda _: mutator.noise(300))
    n_refused = 0
    for _ in range(N_EACH):
        seed = draw.choice(seeds or said())
        content = draw.choice(changes)(seed)
        try:
            read = reader.decode(content)
        except ProtocolError:
            n_refused += 1
            continue
        # Equal bytes are equal statements, and the reverse: what is taken has no second spelling.
        assert read.encode() == content
    assert n_refused > N_EACH // 10


def test_frames_of_the_second_transport_are_whole_and_within_their_bound_or_refused() -> None:
    mutator, draw = Mutator(20260306, ()), random.Random(20260307)
    for _ in range(N_EACH * 3):
        stream = b"".join(message_frame(draw.randbytes(draw.randint(0, 60))) for _ in range(draw.randint(0, 4)))
        content = draw.choice((mutator.flip, mutator.cut, lambda data: data + mutator.noise(20)))(stream)
        reader, frames = FrameReader(max_bytes=64), []
        try:
            while content:
                cut = draw.randint(1, len(content))
                frames += reader.feed(content[:cut])
                content = content[cut:]
        except FrameInvalidError:
            continue
        assert all(len(frame.payload) <= 64 for frame in frames)
        assert len(reader._held) < 64 + 5


def test_frame_that_announces_four_gigabytes_is_refused_before_they_come() -> None:
    with pytest.raises(FrameInvalidError):
        FrameReader(max_bytes=1 << 20).feed(b"\x00\xff\xff\xff\xff")
