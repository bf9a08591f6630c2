from __future__ import annotations

from pathlib import Path

import pytest

from site_agent.training import device
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import write_records


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "records.jsonl", 40)


@pytest.fixture(autouse=True)
def float32_on_this_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests expect was computed in float32; what a processor does with bfloat16 has a test of its own."""
    if "bfloat16" not in request.keywords:
        monkeypatch.setattr(device, "cpu_flags", frozenset)
