from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.wire.blob_chunks import (
    ChunkMessage,
    WireChunk,
    bytes_from_download_response,
    bytes_from_upload_request,
    download_response_from_bytes,
    upload_request_from_bytes,
)
from fl_protocol.wire.v1 import round_pb2

chunks = st.builds(
    WireChunk,
    offset=st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
    data=st.binary(max_size=400),
    leaf_sha256=st.binary(max_size=40),
    prefix_sha256=st.binary(max_size=40),
)


def proto_of(chunk: WireChunk) -> round_pb2.BlobChunk:
    return round_pb2.BlobChunk(
        offset=chunk.offset,
        data=bytes(chunk.data),
        leaf_sha256=chunk.leaf_sha256,
        prefix_sha256=chunk.prefix_sha256,
    )


@given(chunk=chunks)
def test_bytes_are_those_that_protobuf_writes(chunk: WireChunk) -> None:
    message = ChunkMessage(chunk=chunk)
    up = round_pb2.UploadBlobRequest(chunk=proto_of(chunk)).SerializeToString(deterministic=True)
    down = round_pb2.DownloadBlobResponse(chunk=proto_of(chunk)).SerializeToString(deterministic=True)
    assert bytes_from_upload_request(message) == up
    assert bytes_from_download_response(message) == down


@given(chunk=chunks)
def test_what_protobuf_writes_is_read_without_it(chunk: WireChunk) -> None:
    up = round_pb2.UploadBlobRequest(chunk=proto_of(chunk)).SerializeToString()
    down = round_pb2.DownloadBlobResponse(chunk=proto_of(chunk)).SerializeToString()
    assert upload_request_from_bytes(up) == ChunkMessage(chunk=chunk, n_bytes=len(up))
    assert download_response_from_bytes(down) == ChunkMessage(chunk=chunk, n_bytes=len(down))


def test_chunk_of_a_mebibyte_is_a_view_into_its_message() -> None:
    data = bytes(range(256)) * 4096
    encoded = bytes_from_upload_request(ChunkMessage(chunk=WireChunk(offset=5 << 20, data=data, leaf_sha256=b"l" * 32)))
    read = upload_request_from_bytes(encoded)
    assert isinstance(read, ChunkMessage)
    assert isinstance(read.chunk.data, memoryview)
    assert read.chunk.data.obj is encoded
    assert (read.chunk.offset, read.chunk.data, read.chunk.leaf_sha256) == (5 << 20, data, b"l" * 32)
    assert (read.WhichOneof("part"), read.ByteSize()) == ("chunk", len(encoded))


def test_header_is_protobufs() -> None:
    header = round_pb2.UploadBlobRequest(header=round_pb2.UploadHeader(masked_input=b"m5", offset=7))
    assert bytes_from_upload_request(header) == header.SerializeToString()
    assert upload_request_from_bytes(header.SerializeToString()) == header


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x12\x05\x12\x01d\x08\x07",  # the fields the other way round
        b"\x12\x05\x08\x87\x00\x12\x00",  # a number with a byte more than it needs, and an empty field
        b"\x12\x07\x08\x07\x12\x01d\x28\x01",  # a field of a newer version
        b"\x12\x02\x08\x07\x12\x03\x12\x01d",  # the chunk in two pieces, which protobuf merges
    ],
)
def test_what_is_written_otherwise_means_what_it_means_to_protobuf(encoded: bytes) -> None:
    meant, read = round_pb2.UploadBlobRequest.FromString(encoded), upload_request_from_bytes(encoded)
    assert read.WhichOneof("part") == meant.WhichOneof("part") == "chunk"
    assert (read.chunk.offset, bytes(read.chunk.data)) == (meant.chunk.offset, meant.chunk.data)


@given(encoded=st.binary(max_size=60), tag=st.sampled_from([b"", b"\x12", b"\x0a"]))
def test_bytes_from_anywhere_mean_what_they_mean_to_protobuf_or_nothing(encoded: bytes, tag: bytes) -> None:
    encoded = tag + encoded
    try:
        meant = round_pb2.UploadBlobRequest.FromString(encoded)
    except DecodeError:
        with pytest.raises(DecodeError):
            upload_request_from_bytes(encoded)
        return
    read = upload_request_from_bytes(encoded)
    assert read.WhichOneof("part") == meant.WhichOneof("part")
    if isinstance(read, ChunkMessage):
        assert proto_of(read.chunk) == meant.chunk


@given(chunk=chunks, cut=st.integers(1, 30))
def test_message_that_is_cut_short_is_none(chunk: WireChunk, cut: int) -> None:
    encoded = bytes_from_upload_request(ChunkMessage(chunk=chunk))
    short = encoded[:-cut]
    try:
        meant = round_pb2.UploadBlobRequest.FromString(short)
    except DecodeError:
        with pytest.raises(DecodeError):
            upload_request_from_bytes(short)
    else:
        assert not meant.WhichOneof("part")


@pytest.mark.parametrize("offset", [-1, 1 << 64])
def test_offset_beyond_64_bits_is_not_written(offset: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        bytes_from_upload_request(ChunkMessage(chunk=WireChunk(offset=offset, data=b"")))
