from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.new_folder import FolderNotEmptyError, new_folder


def fill(workplace: Path) -> None:
    (workplace / "keys").mkdir()
    (workplace / "keys" / "root").write_text("key")
    (workplace / "a-last.yaml").write_text("settings")


def test_new_folder_where_nothing_is_appears_by_one_rename(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    with new_folder(folder, last="a-last.yaml") as workplace:
        fill(workplace)
        assert not folder.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a-last.yaml", "keys"]
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_new_folder_that_is_a_volume_keeps_its_inode_and_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    (folder / "lost+found").mkdir(parents=True)
    inode = folder.stat().st_ino
    with new_folder(folder, last="a-last.yaml") as workplace:
        fill(workplace)
        assert not (folder / "a-last.yaml").exists()
    assert folder.stat().st_ino == inode
    assert sorted(path.name for path in folder.iterdir()) == ["a-last.yaml", "keys", "lost+found"]
    assert (folder / "keys" / "root").read_text() == "key"


@pytest.mark.parametrize("is_there", [True, False])
def test_new_folder_after_a_failure_leaves_nothing_behind(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "volume"
    if is_there:
        folder.mkdir()

    def fail() -> None:
        with new_folder(folder, last="a-last.yaml") as workplace:
            fill(workplace)
            raise RuntimeError("the database does not answer")

    with pytest.raises(RuntimeError, match="does not answer"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == (["volume"] if is_there else [])
    assert not is_there or not any(folder.iterdir())


@pytest.mark.parametrize("name", ["coordinator.yaml", "deep/down/file"])
def test_new_folder_that_holds_a_file_is_refused_untouched(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "volume"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(FolderNotEmptyError), new_folder(folder, last="a-last.yaml"):
        pytest.fail("nothing is made")
    assert (folder / name).read_text() == "mine"
    assert {path for path in folder.rglob("*") if path.is_file()} == {folder / name}
