"""This site's own public states: what is computed is kept, what was altered is not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.clock import SystemClock
from fl_protocol.folds.public_state import PublicState
from fl_protocol.testing.federation import RUN_ID
from site_agent.db.tx import open_site_db
from site_agent.errors import PublicStateError
from site_agent.state.public_state import PublicStateStore, read_verified


def state(version: int, *, value: float = 1.0) -> PublicState:
    return PublicState(version=version, adapter={"a": np.full((2, 2), value, np.float32)})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PublicStateStore]:
    db = open_site_db(tmp_path / "site.db")
    yield PublicStateStore(tmp_path / "states", db, SystemClock())
    db.close()


def test_newest_state_is_the_highest_version(store: PublicStateStore) -> None:
    assert store.newest(RUN_ID) is None
    for version in (0, 1, 2):
        store.save(RUN_ID, state(version), result_sha256=None if version == 0 else f"{version:02d}" * 32)
    newest = store.newest(RUN_ID)
    assert newest is not None
    assert (newest.version, newest.sha256, newest.result_sha256) == (2, state(2).digest(), "02" * 32)
    assert store.load(newest).to_bytes() == state(2).to_bytes()


def test_same_state_saved_twice_is_one(store: PublicStateStore) -> None:
    first = store.save(RUN_ID, state(0), result_sha256=None)
    assert store.save(RUN_ID, state(0), result_sha256=None) == first


def test_other_state_of_a_known_version_is_refused(store: PublicStateStore) -> None:
    store.save(RUN_ID, state(0), result_sha256=None)
    with pytest.raises(PublicStateError):
        store.save(RUN_ID, state(0, value=2.0), result_sha256=None)


def test_state_altered_on_the_disk_is_not_read(store: PublicStateStore) -> None:
    stored = store.save(RUN_ID, state(0), result_sha256=None)
    # Another state is the one in memory now, as after a restart.
    store.save(RUN_ID, state(1), result_sha256=None)
    data = bytearray(stored.path.read_bytes())
    data[-1] ^= 1
    stored.path.write_bytes(data)
    with pytest.raises(PublicStateError):
        store.load(stored)
    with pytest.raises(PublicStateError):
        read_verified(stored)
    stored.path.unlink()
    with pytest.raises(PublicStateError):
        store.load(stored)


def test_state_in_memory_is_the_one_that_was_saved(store: PublicStateStore) -> None:
    stored = store.save(RUN_ID, state(0, value=3.0), result_sha256=None)
    assert store.load(stored).digest() == stored.sha256 == hashlib.sha256(stored.path.read_bytes()).hexdigest()


def test_state_read_again_after_a_restart_is_the_file_to_the_byte(store: PublicStateStore) -> None:
    stored = store.save(RUN_ID, state(0, value=3.0), result_sha256=None)
    # Another state is the one in memory now, as after a restart; what a trainer is given is what this one writes.
    store.save(RUN_ID, state(1), result_sha256=None)
    assert b"".join(store.load(stored).iter_bytes()) == stored.path.read_bytes()


def test_old_versions_lose_their_bytes_and_keep_their_row(store: PublicStateStore) -> None:
    stored = [store.save(RUN_ID, state(version), result_sha256=None) for version in range(4)]
    assert [one.path.exists() for one in stored] == [False, False, True, True]
    assert store.find(RUN_ID, 0) == stored[0]
