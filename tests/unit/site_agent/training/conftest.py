from __future__ import annotations

from pathlib import Path

import pytest

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
