"""One agent a state directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from site_agent.errors import StateDirectoryLockedError
from site_agent.state.directory_lock import DirectoryLock


def test_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    with pytest.raises(StateDirectoryLockedError) as refused:
        DirectoryLock(tmp_path).acquire()
    assert refused.value.code == "state-directory-locked"
    assert refused.value.facts == {"holder_pid": str(os.getpid())}
    first.release()


def test_lock_released_can_be_taken_again(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    first.release()
    second.acquire()
    second.release()
