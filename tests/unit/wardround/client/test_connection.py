from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wardround.client.connection import ProfileFolder, load_connection
from wardround.errors import UsageInvalidError


def test_saved_connection_is_loaded_again_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    environment = {"WARDROUND_HOME": str(tmp_path / "home")}
    folder = ProfileFolder.of_user(environment)
    folder.save(url="https://c.test:8443", token="wrt_t", root_pem=b"PEM")
    connection = load_connection(environment)
    assert (connection.url, connection.token) == ("https://c.test:8443", "wrt_t")
    assert connection.root_file.read_bytes() == b"PEM"
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700
    for file in folder.root.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_environment_wins_over_what_was_saved(tmp_path: Path) -> None:
    environment = {"WARDROUND_HOME": str(tmp_path)}
    ProfileFolder.of_user(environment).save(url="https://saved.test", token="saved", root_pem=b"PEM")
    (tmp_path / "other").write_text("wrt_other\n")
    environment |= {"WARDROUND_URL": "https://other.test/", "WARDROUND_TOKEN_FILE": str(tmp_path / "other")}
    connection = load_connection(environment)
    assert (connection.url, connection.token) == ("https://other.test", "wrt_other")


def test_connection_of_nobody_says_how_to_sign_in(tmp_path: Path) -> None:
    with pytest.raises(UsageInvalidError) as caught:
        load_connection({"WARDROUND_HOME": str(tmp_path)})
    assert "wardround login" in caught.value.advice


@pytest.mark.parametrize("damage", ["", "{", '{"url": 7}', "[]"])
def test_damaged_connection_file_is_said_to_be_damaged(tmp_path: Path, damage: str) -> None:
    environment = {"WARDROUND_HOME": str(tmp_path)}
    folder = ProfileFolder.of_user(environment)
    folder.save(url="https://c.test", token="t", root_pem=b"PEM")
    folder.connection_file.write_text(damage)
    with pytest.raises(UsageInvalidError, match="damaged"):
        load_connection(environment)


def test_empty_token_file_is_refused(tmp_path: Path) -> None:
    environment = {"WARDROUND_HOME": str(tmp_path)}
    ProfileFolder.of_user(environment).save(url="https://c.test", token=" ", root_pem=b"PEM")
    with pytest.raises(UsageInvalidError, match="empty"):
        load_connection(environment)


def test_folder_of_user_follows_xdg(tmp_path: Path) -> None:
    assert ProfileFolder.of_user({"XDG_CONFIG_HOME": str(tmp_path)}).root == tmp_path / "wardround"
