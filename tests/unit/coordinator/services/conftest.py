from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

_NAME = "coordinator_engine_lab"


def _load() -> ModuleType:
    # The test tree has no packages, so that the lab is loaded by its place, once.
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("engine_lab.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


_load()


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., object]]:
    """Makes a lab with ``names`` and the lab's ``rules``, and closes its database afterwards."""
    made = []

    def make(*names: str, **rules: object) -> object:
        folder = tmp_path / f"lab{len(made)}"
        folder.mkdir()
        lab = _load().EngineLab(folder, names or ("a-site", "b-site", "c-site"), **rules)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.db.dispose()
