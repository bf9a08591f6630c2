"""Every log call of the code has a constant for its event and keys of the list; all lines have one form."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fl_protocol.telemetry.log_fields import LOG_FIELDS

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("coordinator", "site_agent", "wardround", "fl_protocol")
METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
NOT_OURS = {"exc_info"}
"""What structlog itself takes, and turns into `exception`."""
SPREAD = {("coordinator/app.py", "coordinator_ready"), ("site_agent/link/link_channel.py", "transport_changed")}
"""The calls that pass a mapping: their keys are `serve.json`'s, and three that are words of Python."""


@cache
def log_calls() -> tuple[tuple[str, ast.Call], ...]:
    return tuple(find_log_calls())


def find_log_calls() -> Iterator[tuple[str, ast.Call]]:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            # The trainer has a log of its own in the job's folder, in plain lines, and nobody collects it.
            if "training" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                target = node.func.value
                if node.func.attr in METHODS and isinstance(target, ast.Name) and target.id in {"log", "_log"}:
                    yield str(file.relative_to(ROOT)), node


def test_calls_are_found() -> None:
    assert len(log_calls()) > 80


def test_every_event_is_a_constant() -> None:
    for place, call in log_calls():
        assert call.args, (place, call.lineno)
        assert isinstance(call.args[0], ast.Constant), (place, call.lineno)
        assert isinstance(call.args[0].value, str)
        assert call.args[0].value.replace("_", "").isalnum(), (place, call.lineno, call.args[0].value)
        assert len(call.args) == 1, (place, call.lineno)


def test_every_key_is_listed_in_log_fields() -> None:
    missing = {
        (keyword.arg, f"{place}:{call.lineno}")
        for place, call in log_calls()
        for keyword in call.keywords
        if keyword.arg is not None and keyword.arg not in LOG_FIELDS and keyword.arg not in NOT_OURS
    }
    assert not missing, f"say in fl_protocol/telemetry/log_fields.py what these hold: {sorted(missing)}"


def test_no_call_but_two_passes_a_mapping() -> None:
    spread = {
        (place, call.args[0].value)
        for place, call in log_calls()
        if any(keyword.arg is None for keyword in call.keywords)
        if isinstance(call.args[0], ast.Constant)
    }
    assert spread == SPREAD


PROGRAM = """
import asyncio, logging, sys, warnings
import structlog
from fl_protocol.telemetry.logs import configure_logs
configure_logs(sys.argv[1], is_json=sys.argv[2] == "json")
log = structlog.get_logger("room")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    log.info("round_opened", run_id="run-x", round_index=3)
    logging.getLogger("uvicorn.error").warning("a %s from a library", "word")
    logging.getLogger("grpc._cython").info("what nobody needs")
    try:
        raise ValueError("inside")
    except ValueError:
        log.exception("it_failed")
"""


def run_program(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_lines_of_ours_and_of_libraries_have_one_form_and_one_request() -> None:
    lines = [json.loads(line) for line in run_program("info", "json")]
    assert [line["event"] for line in lines] == ["round_opened", "a word from a library", "it_failed"]
    assert all(set(line) <= set(LOG_FIELDS) for line in lines)
    assert all(line["request_id"] == "r1" and line["timestamp"].endswith("Z") for line in lines)
    assert lines[0]["run_id"] == "run-x"
    assert lines[1]["logger"] == "uvicorn.error"
    assert lines[1]["level"] == "warning"
    assert "ValueError: inside" in lines[2]["exception"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_level_holds_for_ours(form: str) -> None:
    lines = run_program("error", form)
    assert not any("round_opened" in line for line in lines)
    assert any("it_failed" in line for line in lines)
