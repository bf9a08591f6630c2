"""Scripts of deploy/ as modules: they are programs, and no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    def load(path: str) -> ModuleType:
        name = f"deploy_script_{Path(path).stem}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, DEPLOY / path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            # Frozen dataclasses with postponed annotations look their module up by name.
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return sys.modules[name]

    return load
