from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from wardround.demo.workspace import Checkout, DemoOptions, Workspace, child_environment
from wardround.errors import UsageInvalidError

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_work_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("mine")
    with pytest.raises(UsageInvalidError, match="not empty"):
        Workspace.create(DemoOptions(work_dir=tmp_path), Checkout(root=tmp_path), now=NOW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter"]


def test_work_folder_of_nobody_s_choice_lies_in_the_checkout(tmp_path: Path) -> None:
    workspace = Workspace.create(DemoOptions(), Checkout(root=tmp_path), now=NOW)
    assert workspace.root == tmp_path / ".wardround" / "demo" / "20260102-030405"
    assert not workspace.is_named


def test_discard_state_keeps_release_logs_and_summary_only(tmp_path: Path) -> None:
    workspace = Workspace.create(DemoOptions(work_dir=tmp_path / "work"), Checkout(root=tmp_path), now=NOW)
    workspace.release.mkdir()
    (workspace.release / "README.md").write_text("card")
    (workspace.site_dir("st-mary") / "keys").mkdir(parents=True)
    (workspace.root / "audit.jsonl").write_text("rows")
    workspace.summary_file.write_text("{}")
    workspace.discard_state()
    assert {entry.name for entry in workspace.root.iterdir()} == {"release", "logs", "summary.json"}
    assert (workspace.release / "README.md").read_text() == "card"


def test_child_environment_keeps_the_user_s_own_installation_out(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "WARDROUND_GATEWAY__PORT": "443", "WARDROUND_TOKEN_FILE": "t", "PYTHONPATH": "mine"}
    child = child_environment(given, Checkout(root=tmp_path))
    assert not [name for name in child if name.startswith("WARDROUND_")]
    assert child["PATH"] == "/bin"
    assert child["PYTHONPATH"].split(":") == [str(tmp_path), "mine"]
    assert child["HF_HUB_OFFLINE"] == "1"
