from __future__ import annotations

import json
from pathlib import Path

import pytest

from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.testing.run_specs import run_spec_document
from site_agent.training.initial_adapter import read_run_spec

pytestmark = pytest.mark.training


def test_run_spec_as_json_writers_put_it_is_read(tmp_path: Path) -> None:
    """``5e-05`` is a number in JSON and a word in YAML 1.1."""
    text = json.dumps(run_spec_document({"local.learning_rate": 5e-05}))
    assert "5e-05" in text
    (tmp_path / "run.json").write_text(text)
    assert read_run_spec(tmp_path / "run.json").local.learning_rate == 5e-05


def test_run_spec_that_is_neither_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: [1\n")
    with pytest.raises(RunSpecFaultsError):
        read_run_spec(tmp_path / "run.yaml")
