"""Command lines that go wrong: a sentence on stderr, the exit code of the page, and one document under ``--json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.__main__ import cli
from coordinator.cli.console import run_line

WRONG = (
    (["nonsense"], "No such command"),
    (["backup"], "Missing argument"),
    (["backup", "b.tar"], "--without-keys"),
    (["init", "--rest-port", "99999999", "x"], "--rest-port"),
)


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words that name a coordinator's file."""
    assert run_line(cli, ["init", str(tmp_path / "state")]) == 0
    capsys.readouterr()
    return ["--config", str(tmp_path / "state" / "coordinator.yaml")]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_wrong_command_line_is_told_on_stderr(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_line(cli, words) == 2
    captured = capsys.readouterr()
    assert (named in captured.err, captured.out) == (True, "")


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_wrong_command_line_under_json_is_one_document_too(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(cli, [*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "wrong-usage"
    assert named in captured.err


def test_configuration_that_is_wrong_is_one_document_and_no_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(cli, ["config", "check", "--json", "--config", str(tmp_path / "none.yaml")]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "settings-invalid"


def test_backup_into_a_folder_that_is_not_there_is_a_sentence(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backup", str(tmp_path / "none" / "b.tar"), "--without-keys", *made]
    assert run_line(cli, words) == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert run_line(cli, ["--json", *words]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "file-unusable"


def test_passphrase_file_that_is_not_there_is_not_said_to_be_made_by_init(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["backup", str(tmp_path / "b.tar"), "--passphrase-file", str(tmp_path / "none"), *made]
    assert run_line(cli, words) == 1
    said = capsys.readouterr().err
    assert ("check its name" in said, "init" in said) == (True, False)


def test_what_is_not_there_has_the_exit_code_of_all_three_programs(
    made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(cli, ["acknowledge-restore", "--by", "maria", *made]) == 4
    assert "never restored" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run_line(cli, ["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("wardround")
