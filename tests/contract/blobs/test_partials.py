"""What every BlobStore promises about uploads that arrive in parts."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable

import pytest

from coordinator.blobs.store import BlobStore
from coordinator.errors import BlobNotFoundError, BlobOffsetError, PartialTakenOverError

OpenStore = Callable[[], BlobStore]
MIB = 1 << 20
DATA = random.Random(23).randbytes(19 * MIB + 4321)
DIGEST = hashlib.sha256(DATA).hexdigest()


def append_all(store: BlobStore, name: str, *, until: int = len(DATA)) -> None:
    writer = store.open_partial(name)
    for start in range(writer.held, until, MIB):
        assert writer.append(memoryview(DATA)[start : min(start + MIB, until)]) == min(start + MIB, until)
    writer.close()


def test_partial_grows_and_becomes_the_blob_and_stays_until_it_is_discarded(store: BlobStore) -> None:
    assert store.partial_size("u.1") == 0
    append_all(store, "u.1")
    assert store.partial_size("u.1") == len(DATA)
    assert not store.has(DIGEST)
    for _ in range(2):
        # The second time is that of a process that died before it recorded the blob.
        writer = store.open_partial("u.1")
        assert writer.held == len(DATA)
        stored = writer.finish(sha256=DIGEST)
        writer.close()
        assert (stored.sha256, stored.n_bytes) == (DIGEST, len(DATA))
        assert store.partial_size("u.1") == len(DATA)
    store.discard_partial("u.1")
    assert store.partial_size("u.1") == 0
    assert store.read(DIGEST) == DATA


@pytest.mark.parametrize("stops", [[1], [MIB, 3 * MIB], [6 * MIB + 11, 7 * MIB, 7 * MIB + 1, 18 * MIB], [len(DATA)]])
def test_partial_is_continued_by_whoever_opens_it(open_store: OpenStore, stops: list[int]) -> None:
    for stop in stops:
        append_all(open_store(), "u.2", until=stop)
        assert open_store().partial_size("u.2") == stop
        assert b"".join(open_store().iter_partial("u.2", chunk_bytes=MIB)) == DATA[:stop]
    append_all(open_store(), "u.2")
    writer = open_store().open_partial("u.2")
    writer.finish(sha256=DIGEST)
    writer.close()
    assert open_store().read(DIGEST) == DATA


def test_pieces_of_a_partial_are_as_long_as_asked_for(store: BlobStore) -> None:
    append_all(store, "u.3", until=3 * MIB + 5)
    append_all(store, "u.3", until=9 * MIB + 7)
    assert [len(piece) for piece in store.iter_partial("u.3", chunk_bytes=MIB)] == [MIB] * 9 + [7]


def test_partial_that_is_discarded_begins_anew_under_another_lineage(store: BlobStore) -> None:
    writer = store.open_partial("u.4")
    writer.append(b"abc")
    writer.close()
    again = store.open_partial("u.4")
    assert (again.held, again.lineage) == (3, writer.lineage)
    again.close()
    for _ in range(2):
        store.discard_partial("u.4")
    assert store.partial_size("u.4") == 0
    assert list(store.iter_partial("u.4")) == []
    anew = store.open_partial("u.4")
    assert anew.held == 0
    assert anew.lineage != writer.lineage
    anew.close()


def test_partials_do_not_meet(store: BlobStore) -> None:
    for name, data in (("u.5", b"five"), ("u.50", b"fifty")):
        writer = store.open_partial(name)
        writer.append(data)
        writer.close()
    store.discard_partial("u.5")
    assert (store.partial_size("u.5"), store.partial_size("u.50")) == (0, 5)


@pytest.mark.parametrize("name", ["../u", "", "a/b", "U", ".hidden", "x" * 200])
def test_odd_name_of_a_partial_is_refused(store: BlobStore, name: str) -> None:
    for call in (store.open_partial, store.partial_size, store.discard_partial, lambda n: list(store.iter_partial(n))):
        with pytest.raises(BlobNotFoundError):
            call(name)


def test_later_writer_takes_the_partial_over_from_another_process(open_store: OpenStore) -> None:
    older = open_store().open_partial("u.6")
    for start in range(0, 8 * MIB, MIB):
        older.append(DATA[start : start + MIB])
    newer = open_store().open_partial("u.6")
    assert newer.held == 8 * MIB
    # As much as an object of an object store, whose owner is asked when one is written.
    with pytest.raises(PartialTakenOverError):
        older.append(DATA[8 * MIB : 16 * MIB])
    older.close()
    for start in range(8 * MIB, len(DATA), MIB):
        newer.append(DATA[start : start + MIB])
    newer.finish(sha256=DIGEST)
    newer.close()
    assert open_store().read(DIGEST) == DATA


def test_writer_of_a_discarded_or_finished_partial_changes_nothing(open_store: OpenStore) -> None:
    store = open_store()
    older = store.open_partial("u.7")
    older.append(DATA[: 8 * MIB])
    store.discard_partial("u.7")
    with pytest.raises(PartialTakenOverError):
        older.append(DATA[8 * MIB : 16 * MIB])
    older.close()
    assert store.partial_size("u.7") == 0

    append_all(store, "u.7")
    late = store.open_partial("u.7")
    first = store.open_partial("u.7")
    first.finish(sha256=DIGEST)
    with pytest.raises((PartialTakenOverError, BlobOffsetError)):
        late.append(bytes(8 * MIB))
    with pytest.raises((PartialTakenOverError, BlobOffsetError)):
        first.append(bytes(8 * MIB))
    late.close()
    first.close()
    assert store.read(DIGEST) == DATA


def test_two_that_append_at_once_leave_one_whole_upload(open_store: OpenStore) -> None:
    """Each opens again when the other took over, as a site that has two streams by mistake would make them do."""
    ends: list[str] = []

    def race() -> None:
        store = open_store()
        while True:
            writer = store.open_partial("u.8")
            try:
                while writer.held < len(DATA):
                    writer.append(DATA[writer.held : writer.held + MIB])
                writer.finish(sha256=DIGEST)
            except PartialTakenOverError:
                continue
            except BlobOffsetError:
                ends.append("it was whole already")
            else:
                ends.append("finished")
            finally:
                try:
                    writer.close()
                except PartialTakenOverError:
                    ends.append("the tail was another's")
            return

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert "finished" in ends
    assert open_store().read(DIGEST) == DATA


def test_closing_twice_is_nothing(store: BlobStore) -> None:
    writer = store.open_partial("u.9")
    writer.append(b"x")
    writer.close()
    writer.close()
    assert store.partial_size("u.9") == 1


def test_partial_without_a_byte_is_the_empty_blob(store: BlobStore) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    writer = store.open_partial("u.10")
    assert writer.finish(sha256=empty).n_bytes == 0
    writer.close()
    assert store.read(empty) == b""


def test_unfinished_partials_of_dead_requests_are_forgotten_and_uploads_are_not(store: BlobStore) -> None:
    for name in ("rest-1", "u.11"):
        writer = store.open_partial(name)
        writer.append(b"what a crash left")
        writer.close()
    assert store.discard_unfinished(older_than_s=3600) == 0
    assert store.partial_size("rest-1") == 17
    assert store.discard_unfinished(older_than_s=-3600) == 1
    assert (store.partial_size("rest-1"), store.partial_size("u.11")) == (0, 17)
