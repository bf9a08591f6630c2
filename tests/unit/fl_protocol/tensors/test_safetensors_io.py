from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from fl_protocol.tensors.errors import SafetensorsInvalidError
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, dtype_name, metadata_from_bytes, tensors_from_bytes

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1, -2], np.int64),
    "half": np.array([1.5], np.float16),
    "flags": np.array([True, False, True]),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.25),
}


def file_of(header: object, body: bytes = b"") -> bytes:
    rendered = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(rendered)) + rendered + body


def entry(start: int, stop: int, shape: object = None, dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and np.array_equal(left[name], right[name])
        for name in left
    )


def test_bytes_are_read_by_the_reference_library() -> None:
    assert same(safetensors.numpy.load(bytes_from_tensors(TENSORS, {"k": "v"})), TENSORS)


def test_bytes_of_the_reference_library_are_read() -> None:
    data = safetensors.numpy.save(TENSORS, {"k": "v"})
    assert same(tensors_from_bytes(data), TENSORS)
    assert metadata_from_bytes(data) == {"k": "v"}


def test_bytes_do_not_depend_on_order_memory_layout_or_byte_order() -> None:
    turned = {name: TENSORS[name] for name in reversed(TENSORS)}
    turned["b"] = np.asfortranarray(turned["b"]).astype(">f4")
    metadata = {"x": "1", "a": "2", "m": "3"}
    again = dict(reversed(metadata.items()))
    assert bytes_from_tensors(turned, again) == bytes_from_tensors(TENSORS, metadata)


def test_bytes_start_aligned() -> None:
    data = bytes_from_tensors({"é": np.zeros(3, np.float32)})
    (length,) = struct.unpack_from("<Q", data)
    assert length % 8 == 0
    assert len(data) == 8 + length + 12


def test_arrays_read_are_writable_copies() -> None:
    data = bytearray(bytes_from_tensors({"a": np.ones(2, np.float32)}))
    array = tensors_from_bytes(data)["a"]
    data[-1] = 0
    array[0] = 5
    assert array.tolist() == [5, 1]


def test_metadata_of_a_file_without_it_is_empty() -> None:
    assert metadata_from_bytes(bytes_from_tensors({"a": np.ones(1)})) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        file_of(b"not json"),
        file_of(b"[" * 100_000),
        file_of([1]),
        file_of(b'{"a":{},"a":{}}'),
        file_of({"a": 1}),
        file_of({"a": {"dtype": "U8", "shape": [1]}}, b"x"),
        file_of({"a": entry(0, 1) | {"more": 1}}, b"x"),
        file_of({"a": entry(0, 2, dtype="BF16", shape=[1])}, b"xx"),
        file_of({"a": entry(0, 1, dtype=["U8"])}, b"x"),
        file_of({"a": entry(0, 4, shape=[2], dtype="U8")}, b"xxxx"),
        file_of({"a": entry(0, 4)}, b"xxx"),
        file_of({"a": entry(0, 4)}, b"xxxxx"),
        file_of({"a": entry(1, 4)}, b"xxxx"),
        file_of({"a": entry(0, 3), "b": entry(2, 4)}, b"xxxx"),
        file_of({"a": entry(0, 1), "b": entry(2, 4)}, b"xxxx"),
        file_of({"a": entry(0, 1, shape=[-1])}, b"x"),
        file_of({"a": entry(0, 1, shape=[1] * 100)}, b"x"),
        file_of({"a": entry(0, 1, shape=[10**4000] * 400)}, b"x"),
        file_of({"a": entry(0, 0, shape=[0, 2**48, 2**48])}),
        file_of({"a": entry(0, 0, shape=[0, 10**30])}),
        file_of({"a": entry(0, 1, shape=[True])}, b"x"),
        file_of({"a": {"dtype": "U8", "shape": [0], "data_offsets": [1, 0]}}, b""),
        file_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"x"),
    ],
)
def test_malformed_file_is_refused(data: bytes) -> None:
    with pytest.raises(SafetensorsInvalidError):
        tensors_from_bytes(data)


def test_metadata_that_is_not_text_is_refused() -> None:
    with pytest.raises(SafetensorsInvalidError):
        metadata_from_bytes(file_of({"__metadata__": {"a": 1}}))


@pytest.mark.parametrize("tensors", [{"__metadata__": np.ones(1)}, {"a": np.ones(1, np.complex128)}])
def test_tensors_that_have_no_form_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(SafetensorsInvalidError):
        bytes_from_tensors(tensors)


def test_dtype_name_is_that_of_safetensors() -> None:
    assert dtype_name(np.dtype(">f4")) == "F32"
    assert dtype_name(np.dtype(np.int64)) == "I64"
