from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.errors import BlobStoreFullError
from coordinator.services.receive_upload import (
    MAX_WAITING,
    BlobPart,
    ChunkAlteredError,
    UploadSink,
    UploadTruncatedError,
    open_sink,
    receive_parts,
)
from coordinator.services.upload_desk import UploadDesk

CHUNK = 16
N_PARTS = 5 * MAX_WAITING
DATA = bytes(range(CHUNK)) * N_PARTS


def part(number: int) -> BlobPart:
    data = DATA[number * CHUNK : (number + 1) * CHUNK]
    return BlobPart(offset=number * CHUNK, data=data, leaf_sha256=hashlib.sha256(b"\x00" + data).digest())


def opened(folder: Path) -> tuple[FilesystemBlobStore, UploadSink]:
    store = FilesystemBlobStore(folder / "blobs")
    return store, open_sink(store, UploadDesk(), partial="u.1", chunk_bytes=CHUNK)


class Door:
    """Holds every write up until it is opened, and counts the parts that were handed over meanwhile."""

    def __init__(self, sink: UploadSink, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open = threading.Event()
        self.n_given = 0
        take = UploadSink.take

        def held_up(sink: UploadSink, one: BlobPart) -> int:
            assert self.is_open.wait(20)
            return take(sink, one)

        monkeypatch.setattr(UploadSink, "take", held_up)

    async def parts(self, n_parts: int = N_PARTS) -> AsyncIterator[BlobPart]:
        for number in range(n_parts):
            self.n_given = number + 1
            yield part(number)


async def no_note(held: int) -> None:
    del held


async def test_no_more_than_so_many_parts_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sink = opened(tmp_path)
    door = Door(sink, monkeypatch)
    receiving = asyncio.create_task(receive_parts(sink, door.parts(), offset=0, n_bytes=len(DATA), note=no_note))
    # As many turns of the loop as a stream without a bound would need to hand over everything.
    for _ in range(10 * N_PARTS):
        await asyncio.sleep(0)
    # Those that are written, those that wait, and no other.
    assert door.n_given <= 2 * MAX_WAITING
    door.is_open.set()
    await receiving
    sink.close()
    assert sink.held == len(DATA)


async def test_parts_that_arrived_are_kept_when_the_stream_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sink = opened(tmp_path)
    door = Door(sink, monkeypatch)

    async def parts() -> AsyncIterator[BlobPart]:
        for number in range(3):
            yield part(number)
        door.is_open.set()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await receive_parts(sink, parts(), offset=0, n_bytes=len(DATA), note=no_note)
    sink.close()
    assert b"".join(store.iter_partial("u.1")) == DATA[: 3 * CHUNK]


@pytest.mark.parametrize("altered", [0, 1, MAX_WAITING + 1, N_PARTS - 1])
async def test_altered_part_is_refused_and_everything_before_it_is_held_and_nothing_behind_it(
    tmp_path: Path, altered: int
) -> None:
    store, sink = opened(tmp_path)

    async def parts() -> AsyncIterator[BlobPart]:
        for number in range(N_PARTS):
            one = part(number)
            yield BlobPart(offset=one.offset, data=one.data, leaf_sha256=bytes(32)) if number == altered else one

    with pytest.raises(ChunkAlteredError):
        await receive_parts(sink, parts(), offset=0, n_bytes=len(DATA), note=no_note)
    sink.close()
    assert b"".join(store.iter_partial("u.1")) == DATA[: altered * CHUNK]


async def test_disk_that_is_full_ends_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sink = opened(tmp_path)
    take = UploadSink.take

    def until_full(sink: UploadSink, one: BlobPart) -> int:
        if one.offset >= 3 * CHUNK:
            raise BlobStoreFullError("full")
        return take(sink, one)

    monkeypatch.setattr(UploadSink, "take", until_full)

    async def parts() -> AsyncIterator[BlobPart]:
        for number in range(N_PARTS):
            yield part(number)

    with pytest.raises(BlobStoreFullError):
        await receive_parts(sink, parts(), offset=0, n_bytes=len(DATA), note=no_note)
    assert sink.held == 3 * CHUNK
    sink.close()


async def test_note_that_fails_ends_the_stream(tmp_path: Path) -> None:
    _, sink = opened(tmp_path)

    async def late(held: int) -> None:
        if held:
            raise TimeoutError

    async def parts() -> AsyncIterator[BlobPart]:
        for number in range(N_PARTS):
            yield part(number)

    with pytest.raises(TimeoutError):
        await receive_parts(sink, parts(), offset=0, n_bytes=len(DATA), note=late)
    sink.close()


async def test_stream_that_ends_early_says_how_much_is_held(tmp_path: Path) -> None:
    _, sink = opened(tmp_path)

    async def parts() -> AsyncIterator[BlobPart]:
        yield part(0)
        yield part(1)

    with pytest.raises(UploadTruncatedError) as refused:
        await receive_parts(sink, parts(), offset=0, n_bytes=len(DATA), note=no_note)
    assert refused.value.facts["received_bytes"] == 2 * CHUNK
    sink.close()
