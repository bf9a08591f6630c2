"""What leaves the hospital of a failed job: a code that this program has, and nothing that a trainer makes up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fl_protocol
import site_agent.jobs
import site_agent.training
from site_agent.jobs.failure_codes import OTHER_CODE, TOLD_CODES, code_to_tell


def codes_of(package: object) -> set[str]:
    """The codes of a package's error classes, as they are written."""
    found: set[str] = set()
    for path in Path(package.__file__).parent.rglob("*.py"):  # type: ignore[attr-defined]
        for node in ast.walk(ast.parse(path.read_text())):
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
                value = getattr(line, "value", None)
                if isinstance(target, ast.Name) and target.id == "code" and isinstance(value, ast.Constant):
                    found.add(str(value.value))
    return found


def test_every_code_of_the_trainer_is_told() -> None:
    assert codes_of(site_agent.training) | codes_of(site_agent.jobs) <= TOLD_CODES


def test_list_holds_no_code_that_nobody_has() -> None:
    # Two of the agent's own, of a payload that is not there, and of a dataset that is too small for the run.
    known = codes_of(site_agent.training) | codes_of(site_agent.jobs) | codes_of(fl_protocol)
    assert TOLD_CODES - known == {"payload-lost", "too-few-records"}


@pytest.mark.parametrize("code", ["", "Xylophone-4711", "dataset-missing ", "DATASET-MISSING", "out-of-memory.7f3a"])
def test_word_that_a_trainer_makes_up_is_not_told(code: str) -> None:
    assert code_to_tell(code) == OTHER_CODE
