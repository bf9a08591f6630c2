from __future__ import annotations

import json

import pytest

from wardround.client.problems import error_from_response
from wardround.errors import (
    CommandFailedError,
    NotFoundError,
    RefusedError,
    SpecRefusedError,
    UnavailableError,
    UsageInvalidError,
)


def problem(**members: object) -> bytes:
    return json.dumps({"type": "urn:wardround:problem:x", **members}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (400, UsageInvalidError, 2),
        (401, RefusedError, 3),
        (403, RefusedError, 3),
        (404, NotFoundError, 4),
        (409, CommandFailedError, 1),
        (422, UsageInvalidError, 2),
        (429, UnavailableError, 5),
        (500, CommandFailedError, 1),
        (503, UnavailableError, 5),
    ],
)
def test_problem_with_status_becomes_typed_error_with_exit_code(status: int, kind: type, exit_code: int) -> None:
    error = error_from_response(status, problem(status=status, code="some-code", detail="it is so", site_id="st-mary"))
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert (error.problem_code, error.message, error.facts) == ("some-code", "it is so", {"site_id": "st-mary"})


def test_problem_with_faults_lists_every_fault_with_its_path() -> None:
    faults = [{"path": "rounds", "message": "must be at least 1"}, {"path": "local.steps", "message": "is required"}]
    error = error_from_response(422, problem(code="run-spec-invalid", detail="2 faults", faults=faults))
    assert isinstance(error, SpecRefusedError)
    assert error.faults == (("rounds", "must be at least 1"), ("local.steps", "is required"))
    assert "rounds: must be at least 1" in str(error)
    assert "local.steps: is required" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"detail": 7, "faults": "x"}'])
def test_answer_that_is_no_problem_document_still_becomes_an_error_that_names_the_status(body: bytes) -> None:
    error = error_from_response(502, body)
    assert isinstance(error, UnavailableError)
    assert error.problem_code == "http-502"
    assert "502" in error.message


@pytest.mark.parametrize(
    ("status", "facts", "command"),
    [
        (409, {"run_id": "run-a", "state": "DRAFT"}, "wardround runs show"),
        (409, {"site_id": "st-mary", "state": "ENROLLED"}, "wardround sites show"),
        (409, {"name": "maria"}, "wardround users list"),
        (404, {"site_id": "st-mary"}, "wardround sites list"),
        (404, {"token_id": "tok-1"}, "wardround tokens list"),
        (404, {"release_id": "rel-1"}, "wardround releases list"),
    ],
)
def test_advice_is_about_what_the_answer_names(status: int, facts: dict[str, str], command: str) -> None:
    assert command in error_from_response(status, problem(code="some-code", detail="no", **facts)).advice


def test_conflict_about_nothing_that_has_a_state_sends_nobody_to_a_run() -> None:
    assert error_from_response(409, problem(code="last-admin", detail="this is the last admin")).advice == ""


def test_problem_with_nested_facts_keeps_only_what_may_be_shown() -> None:
    error = error_from_response(
        403, problem(code="role-insufficient", detail="no", action="runs:start", roles=["admin"])
    )
    assert error.facts == {"action": "runs:start"}
    assert error.advice
