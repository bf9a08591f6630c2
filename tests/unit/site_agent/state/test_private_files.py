"""Private files and folders: modes that no umask widens, and every new entry on the disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from site_agent.state import private_files
from site_agent.state.private_files import make_private_folder, write_private_file


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_parent_that_was_missing_is_private_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(private_files, "sync_folder", synced.append)
    make_private_folder(tmp_path / "jobs" / "run" / "0.0")
    made = [tmp_path / "jobs", tmp_path / "jobs" / "run", tmp_path / "jobs" / "run" / "0.0"]
    assert [mode_of(folder) for folder in made] == [0o700] * 3
    assert synced == [tmp_path, *made[:2]]


def test_folder_that_is_there_keeps_its_mode_and_its_entry_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(private_files, "sync_folder", synced.append)
    (tmp_path / "there").mkdir(mode=0o750)
    make_private_folder(tmp_path / "there")
    assert mode_of(tmp_path / "there") == 0o750
    assert synced == [tmp_path]


def test_private_file_is_whole_and_private(tmp_path: Path) -> None:
    write_private_file(tmp_path / "key", [b"se", b"cret"])
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert mode_of(tmp_path / "key") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
