from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coordinator.ca.errors import KeyFileExistsError, KeyFileMissingError
from coordinator.hand_over import hand_over, make_password


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_password_without_a_given_one_is_random_and_closed_to_others(tmp_path: Path) -> None:
    files = (tmp_path / "one", tmp_path / "two")
    assert [make_password(file, given=None) for file in files] == [True, True]
    first, second = (file.read_text() for file in files)
    # 256 bits in base 64 without padding, and a line's end.
    assert len(first) == len(second) == 43 + 1
    assert first != second
    assert mode_of(files[0]) == 0o600


def test_password_that_is_shared_can_be_read_by_the_group(tmp_path: Path) -> None:
    assert make_password(tmp_path / "password", given=None, is_shared=True)
    assert mode_of(tmp_path / "password") == 0o640


def test_password_that_was_given_is_taken(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("  of the operator\n")
    assert make_password(tmp_path / "password", given=given)
    assert (tmp_path / "password").read_text() == "of the operator\n"


def test_password_given_as_an_empty_file_is_random(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("\n")
    assert make_password(tmp_path / "password", given=given)
    assert len((tmp_path / "password").read_text().strip()) == 43


def test_password_that_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    assert not make_password(file, given=None)
    assert file.read_text() == "first\n"


def test_password_given_by_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileMissingError):
        make_password(tmp_path / "password", given=tmp_path / "absent")
    assert not (tmp_path / "password").exists()


def a_coordinator(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    token, certificate = folder / "admin.token", folder / "root.pem"
    token.write_text("secret\n")
    token.chmod(0o600)
    certificate.write_text("PEM\n")
    return token, certificate


def test_hand_over_moves_the_token_and_copies_the_certificate(tmp_path: Path) -> None:
    token, certificate = a_coordinator(tmp_path / "coordinator")
    moved = hand_over(token, certificate, to=tmp_path / "over")
    assert moved == tmp_path / "over" / "admin.token"
    assert moved.read_text() == "secret\n"
    assert mode_of(moved) == 0o600
    assert not token.exists()
    assert certificate.read_text() == (tmp_path / "over" / "root.pem").read_text() == "PEM\n"


def test_hand_over_into_a_folder_with_another_token_keeps_both(tmp_path: Path) -> None:
    token, certificate = a_coordinator(tmp_path / "coordinator")
    other = tmp_path / "over" / "admin.token"
    other.parent.mkdir()
    other.write_text("of another\n")
    with pytest.raises(KeyFileExistsError):
        hand_over(token, certificate, to=other.parent)
    assert (token.read_text(), other.read_text()) == ("secret\n", "of another\n")
