"""Command lines that are wrong: a sentence that names what is wrong, exit 2, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from site_agent.cli.app import run_program

WRONG = [
    (["datasets", "register"], "FILE.yaml"),
    (["status", "--nonsense"], "--nonsense"),
    (["nonsense"], "nonsense"),
    (["runs", "approve"], "RUN"),
    (["--state-dir"], "--state-dir"),
]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_wrong_command_line_is_told_on_stderr(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(words) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("words", "named"), WRONG[:-1])
def test_wrong_command_line_under_json_is_one_document_too(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program([*words, "--json", "--state-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "wrong-usage"
    assert named in captured.err
