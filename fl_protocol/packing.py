"""The one byte encoding under every signature and digest: fields, each behind its length.

``pack(f1, ..., fk)`` is the concatenation of ``u32(len(fi)) || fi``. Because every field carries its length, two
different lists of fields never give the same bytes, and a decoder can insist on reading all of them.
"""

from __future__ import annotations

import hashlib
import struct

from fl_protocol.errors import ProtocolError

_LENGTH = struct.Struct(">I")


class PackedBytesInvalidError(ProtocolError):
    """Bytes that should be a packed list of fields are not."""

    code = "packed-bytes-invalid"


def u32(number: int) -> bytes:
    """``number`` as four bytes, big-endian. Raises ``struct.error`` outside 0 .. 2**32 - 1."""
    return _LENGTH.pack(number)


def u64(number: int) -> bytes:
    """``number`` as eight bytes, big-endian. Raises ``struct.error`` outside 0 .. 2**64 - 1."""
    return struct.pack(">Q", number)


def u32_from_bytes(field: bytes) -> int:
    """The number that ``u32`` encoded.

    Raises:
        PackedBytesInvalidError: the field is not four bytes long.
    """
    if len(field) != 4:
        raise PackedBytesInvalidError("a 32-bit number is four bytes", n_bytes=len(field))
    return int.from_bytes(field, "big")


def u64_from_bytes(field: bytes) -> int:
    """The number that ``u64`` encoded.

    Raises:
        PackedBytesInvalidError: the field is not eight bytes long.
    """
    if len(field) != 8:
        raise PackedBytesInvalidError("a 64-bit number is eight bytes", n_bytes=len(field))
    return int.from_bytes(field, "big")


def pack(*fields: bytes) -> bytes:
    """Concatenate the fields, each behind its length (four bytes, big-endian)."""
    parts: list[bytes] = []
    for field in fields:
        parts.append(_LENGTH.pack(len(field)))
        parts.append(field)
    return b"".join(parts)


def unpack(data: bytes, n_fields: int | None = None) -> tuple[bytes, ...]:
    """Read back what ``pack`` wrote.

    Args:
        data: the packed fields, and nothing after them.
        n_fields: how many there must be; None admits any number.

    Raises:
        PackedBytesInvalidError: a length runs past the end, or the number of fields is another.
    """
    fields: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise PackedBytesInvalidError("a field's length is cut short", offset=offset)
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += 4
        if offset + length > len(data):
            raise PackedBytesInvalidError("a field runs past the end", offset=offset, field_bytes=length)
        fields.append(bytes(data[offset : offset + length]))
        offset += length
    if n_fields is not None and len(fields) != n_fields:
        raise PackedBytesInvalidError("another number of fields was expected", expected=n_fields, found=len(fields))
    return tuple(fields)


def text_from_bytes(field: bytes) -> str:
    """The UTF-8 text in a field.

    Raises:
        PackedBytesInvalidError: the bytes are not UTF-8.
    """
    try:
        return field.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackedBytesInvalidError("a text field is not UTF-8") from error


def tagged_digest(tag: str, *fields: bytes) -> bytes:
    """``H(tag, fields) = SHA-256(pack("SA1/" + tag, fields))``: 32 bytes that mean one thing only."""
    return hashlib.sha256(pack(b"SA1/" + tag.encode(), *fields)).digest()
