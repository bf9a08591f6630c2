"""The threat model names tests as its proof; each of them exists, so that a row cannot outlive what it rests on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w./-]+?\.py)(?:::(\w+))?`")


def named_tests() -> list[tuple[str, str]]:
    return NAMED.findall((ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8"))


def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = named_tests()
    assert len(named) > 20, "the rows name their tests"
    missing = [
        f"{path}::{name}" if name else path
        for path, name in named
        if not (ROOT / path).is_file() or (name and name not in functions_of(ROOT / path))
    ]
    assert missing == []


def test_every_attack_names_a_test() -> None:
    rows = [
        line for line in (ROOT / "docs" / "threat-model.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)
    ]
    numbers = [int(line.split("|")[1]) for line in rows]
    assert numbers == list(range(1, len(rows) + 1))
    unproven = [number for number, line in zip(numbers, rows, strict=True) if not NAMED.search(line)]
    assert unproven == [], "a row without a test says that nothing stops the attack"
