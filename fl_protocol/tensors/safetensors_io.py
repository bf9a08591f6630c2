"""safetensors bytes: the only form in which tensors are stored or sent. Equal tensors always give equal bytes.

The writer is our own, because the digest of the bytes must not depend on a library's order: tensors by element size
(largest first), then by name; metadata by key; the header padded with spaces to a multiple of eight bytes. What it
writes is an ordinary safetensors file.

    u64 little-endian header length || header (JSON) || tensor bytes, little-endian, in C order, without gaps
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.tensors.errors import SafetensorsInvalidError

_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 32
_MAX_SIZE = 2**48
"""Beyond any file; the product of a few such sizes is taken in no time."""
_METADATA = "__metadata__"

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """What safetensors calls a numpy dtype, for example ``F32``.

    Raises:
        SafetensorsInvalidError: it has no such dtype.
    """
    name = _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise SafetensorsInvalidError("safetensors has no such dtype", dtype=str(dtype))
    return name


def little_endian_bytes(array: NDArray[Any]) -> bytes:
    """An array's elements in C order, little-endian."""
    return bytes(_little_endian_view(array))


def bytes_from_tensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write tensors as safetensors bytes, deterministically.

    Raises:
        SafetensorsInvalidError: a dtype or a name cannot be written.
    """
    return b"".join(iter_safetensors(tensors, metadata))


def iter_safetensors(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The same bytes in pieces, of which the tensors' are views: nothing large is copied.

    Raises:
        SafetensorsInvalidError: a dtype or a name cannot be written; before the first piece.
    """
    order = _order(tensors)
    yield _rendered_header(tensors, metadata, order)
    for name in order:
        yield _little_endian_view(tensors[name])


def is_canonical(
    data: bytes | bytearray | memoryview, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> bool:
    """Whether ``data``, which holds exactly these tensors, is what ``bytes_from_tensors`` writes for them.

    The header fixes every tensor's place, and reading has shown that the places follow each other without a gap: the
    bytes are the canonical ones if and only if the header is.
    """
    rendered = _rendered_header(tensors, metadata, _order(tensors))
    return memoryview(data).cast("B")[: len(rendered)] == rendered


def tensors_from_bytes(data: bytes | bytearray | memoryview, *, is_shared: bool = False) -> dict[str, NDArray[Any]]:
    """Read safetensors bytes; each array is a copy in native order, in the order of the header.

    Args:
        data: the file.
        is_shared: let the arrays share ``data``'s memory, read-only where ``data`` is ``bytes``; in native order only
            where this machine's is little-endian.

    Raises:
        SafetensorsInvalidError: the bytes are malformed, have gaps or overlaps, or hold a dtype that numpy lacks.
    """
    header, body = _header_and_body(data)
    tensors: dict[str, NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == _METADATA:
            continue
        dtype, shape, start, stop = _read_entry(name, entry)
        if stop > len(body) or stop - start != math.prod(shape) * dtype.itemsize:
            raise SafetensorsInvalidError("a tensor's place does not fit its shape", tensor=name[:80])
        try:
            array = np.frombuffer(body[start:stop], dtype=dtype).reshape(shape)
        except ValueError as error:
            # Nothing times too much is nothing, and yet no shape of an array.
            raise SafetensorsInvalidError("a tensor has a shape that no array has", tensor=name[:80]) from error
        tensors[name] = array.astype(dtype.newbyteorder("="), copy=not is_shared)
        spans.append((start, stop))
    position = 0
    for start, stop in sorted(spans):
        if start != position:
            raise SafetensorsInvalidError("the tensors overlap or leave a gap", offset=position)
        position = stop
    if position != len(body):
        raise SafetensorsInvalidError("bytes follow the last tensor", n_bytes=len(body) - position)
    return tensors


def metadata_from_bytes(data: bytes | bytearray | memoryview) -> dict[str, str]:
    """The file's metadata; empty where it has none.

    Raises:
        SafetensorsInvalidError: the header is malformed.
    """
    header, _ = _header_and_body(data)
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsInvalidError("metadata is a mapping of texts")
    return metadata


def _order(tensors: Mapping[str, NDArray[Any]]) -> list[str]:
    return sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))


def _rendered_header(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None, order: Sequence[str]
) -> bytes:
    """The header's length and the header, padded."""
    if _METADATA in tensors:
        raise SafetensorsInvalidError("a tensor may not be called __metadata__")
    header: dict[str, object] = {}
    if metadata:
        header[_METADATA] = {key: metadata[key] for key in sorted(metadata)}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": dtype_name(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    rendered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    rendered += b" " * (-len(rendered) % 8)
    return _HEADER_LENGTH.pack(len(rendered)) + rendered


def _little_endian_view(array: NDArray[Any]) -> memoryview:
    """The elements in C order, little-endian; a view where they lie so already."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    # memoryview.cast refuses a shape that contains a zero.
    return memoryview(plain.reshape(-1).view(np.uint8).data) if plain.size else memoryview(b"")


def _header_and_body(data: bytes | bytearray | memoryview) -> tuple[dict[str, object], memoryview]:
    view = memoryview(data).cast("B")
    if len(view) < _HEADER_LENGTH.size:
        raise SafetensorsInvalidError("the file is shorter than its header's length", n_bytes=len(view))
    (length,) = _HEADER_LENGTH.unpack_from(view)
    if length > _MAX_HEADER_BYTES or _HEADER_LENGTH.size + length > len(view):
        raise SafetensorsInvalidError("the header runs past the end", header_bytes=length)
    stop = _HEADER_LENGTH.size + length
    try:
        header = json.loads(bytes(view[_HEADER_LENGTH.size : stop]), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise SafetensorsInvalidError("the header is not JSON with distinct keys") from error
    if not isinstance(header, dict):
        raise SafetensorsInvalidError("the header is not a mapping")
    return header, view[stop:]


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is repeated")
    return document


def _read_entry(name: str, entry: object) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsInvalidError("a tensor has a dtype, a shape and offsets", tensor=name[:80])
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise SafetensorsInvalidError("a tensor's dtype is not one that numpy has", tensor=name[:80])
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise SafetensorsInvalidError("a tensor's shape is no list of a few sizes", tensor=name[:80])
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SafetensorsInvalidError("a tensor's offsets are no sizes", tensor=name[:80])
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _MAX_SIZE for size in value)
