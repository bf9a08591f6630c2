from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coordinator.ca.errors import (
    KeyFileExistsError,
    KeyFileExposedError,
    KeyFileInvalidError,
    KeyFileMissingError,
)
from coordinator.ca.key_files import load_certificate, load_key, replace_file, write_new_file
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key


def test_key_is_written_for_its_owner_only_and_never_overwritten(tmp_path: Path) -> None:
    key, path = generate_private_key(), tmp_path / "key.pem"
    write_new_file(path, pem_from_private_key(key), mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path).public_key() == key.public_key()
    with pytest.raises(KeyFileExistsError):
        write_new_file(path, b"", mode=0o600)
    assert load_key(path).public_key() == key.public_key()


def test_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_new_file(path, pem_from_private_key(generate_private_key()), mode=0o604)
    with pytest.raises(KeyFileExposedError):
        load_key(path)


def test_file_that_is_missing_or_holds_something_else_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyFileMissingError):
        load_key(tmp_path / "none")
    write_new_file(tmp_path / "text", b"text", mode=0o600)
    with pytest.raises(KeyFileInvalidError):
        load_key(tmp_path / "text")
    with pytest.raises(KeyFileInvalidError):
        load_certificate(tmp_path / "text")


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    for content in (b"one", b"two"):
        replace_file(path, content, mode=0o644)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["serve.json"]
