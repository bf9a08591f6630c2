from __future__ import annotations

import hashlib

import pytest

from fl_protocol.packing import (
    PackedBytesInvalidError,
    pack,
    tagged_digest,
    text_from_bytes,
    u32,
    u32_from_bytes,
    u64,
    u64_from_bytes,
    unpack,
)


def test_pack_writes_each_field_behind_its_big_endian_length() -> None:
    assert pack(b"ab", b"", b"c") == bytes.fromhex("00000002 6162 00000000 00000001 63".replace(" ", ""))


def test_pack_of_differently_cut_fields_differs() -> None:
    assert pack(b"ab", b"c") != pack(b"a", b"bc")


def test_unpack_of_packed_fields_gives_them() -> None:
    assert unpack(pack(b"ab", b"", b"c"), 3) == (b"ab", b"", b"c")
    assert unpack(b"") == ()


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00\x02a", pack(b"ab")[:-1], pack(b"ab") + b"\x00"])
def test_unpack_of_cut_or_extended_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(PackedBytesInvalidError):
        unpack(data)


def test_unpack_of_another_number_of_fields_is_refused() -> None:
    with pytest.raises(PackedBytesInvalidError):
        unpack(pack(b"a", b"b"), 3)


def test_numbers_are_big_endian_and_read_back() -> None:
    assert u32(258) == b"\x00\x00\x01\x02"
    assert u64(258) == b"\x00" * 6 + b"\x01\x02"
    assert u32_from_bytes(u32(2**32 - 1)) == 2**32 - 1
    assert u64_from_bytes(u64(2**64 - 1)) == 2**64 - 1


def test_number_of_another_length_is_refused() -> None:
    with pytest.raises(PackedBytesInvalidError):
        u32_from_bytes(b"\x00" * 8)
    with pytest.raises(PackedBytesInvalidError):
        u64_from_bytes(b"\x00" * 4)


def test_text_that_is_not_utf8_is_refused() -> None:
    assert text_from_bytes("ä".encode()) == "ä"
    with pytest.raises(PackedBytesInvalidError):
        text_from_bytes(b"\xff")


def test_tagged_digest_is_sha256_over_tag_and_fields() -> None:
    written = b"\x00\x00\x00\x06SA1/U1" + b"\x00\x00\x00\x01x"
    assert tagged_digest("U1", b"x") == hashlib.sha256(written).digest()
