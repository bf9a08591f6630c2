"""The trainer holds patient records: it must not even load what speaks to a network or holds keys."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import site_agent.training

FORBIDDEN = (
    "grpc",
    "cryptography",
    "sqlite3",
    "socket",
    "sqlalchemy",
    "httpx",
    "fl_protocol.secagg",
    "fl_protocol.pki",
    "fl_protocol.wire",
    "fl_protocol.signing",
    "fl_protocol.audit",
    "coordinator",
    "site_agent.link",
    "site_agent.state",
)

SOURCES = sorted(Path(site_agent.training.__file__).parent.rglob("*.py"))

PROBE = """
import json, sys
import site_agent.training.recipe, site_agent.training.closing, site_agent.training.serve, site_agent.training.generate
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_source_imports_nothing_forbidden(path: Path) -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not {name for name in imported if is_forbidden(name)}


@pytest.mark.training
def test_recipe_loads_neither_keys_nor_network_of_ours() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "PYTHONPATH": str(Path(site_agent.training.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    # The standard library's own modules are loaded by torch and transformers whatever we do.
    ours_to_avoid = {name for name in FORBIDDEN if name not in ("sqlite3", "socket", "httpx")}
    loaded = {name for name in json.loads(answer.stdout) if is_forbidden(name)}
    assert not {name for name in loaded if any(name == it or name.startswith(f"{it}.") for it in ours_to_avoid)}


def is_forbidden(name: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in FORBIDDEN)


def test_looking_at_data_and_serving_spools_load_no_numeric_library() -> None:
    # A dataset is looked at within a second, and the overseer outlives whatever runs out of memory.
    program = (
        "import sys, json, site_agent.training.inspecting, site_agent.training.spools, site_agent.training.__main__;"
        "print(json.dumps(sorted({'torch', 'transformers', 'peft'} & set(sys.modules))))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(site_agent.training.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(answer.stdout) == []
