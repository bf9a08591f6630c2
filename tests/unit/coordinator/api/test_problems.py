from __future__ import annotations

import json

import pytest

from coordinator.api.problems import problem, problem_from_error
from coordinator.ca.errors import KeyFileMissingError
from coordinator.errors import (
    BlobNotFoundError,
    DatabaseBusyError,
    EffectFailedError,
    NotFoundError,
    SiteNotActiveError,
)
from coordinator.services.refusals import RequestInvalidError, StateConflictError, TokenExpiredError
from fl_protocol.errors import WardroundError
from fl_protocol.spec.faults import Fault, RunSpecFaultsError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TokenExpiredError("x"), 401),
        (SiteNotActiveError("x"), 403),
        (NotFoundError("x"), 404),
        (BlobNotFoundError("x"), 404),
        (StateConflictError("x"), 409),
        (RequestInvalidError("x"), 422),
        (DatabaseBusyError("x"), 503),
    ],
)
def test_error_becomes_a_problem_document(error: WardroundError, status: int) -> None:
    answer = problem_from_error(error)
    document = json.loads(bytes(answer.body))
    assert answer.media_type == "application/problem+json"
    assert answer.status_code == document["status"] == status
    assert document["code"] == error.code
    assert document["type"] == f"urn:wardround:problem:{error.code}"


@pytest.mark.parametrize("error", [EffectFailedError("path /secret", path="/secret"), KeyFileMissingError("/secret")])
def test_internal_error_tells_an_incident_and_nothing_else(error: WardroundError) -> None:
    answer = problem_from_error(error)
    assert answer.status_code == 500
    assert b"secret" not in bytes(answer.body)
    assert len(json.loads(bytes(answer.body))["incident"]) == 16


def test_faults_of_a_run_spec_are_all_listed() -> None:
    error = RunSpecFaultsError([Fault(path="rounds", message="is required"), Fault(path="name", message="is blank")])
    document = json.loads(bytes(problem_from_error(error).body))
    assert document["code"] == "run-spec-invalid"
    assert document["faults"] == [
        {"path": "rounds", "message": "is required"},
        {"path": "name", "message": "is blank"},
    ]


def test_fact_cannot_replace_a_member_of_the_document() -> None:
    document = json.loads(bytes(problem(409, code="c", detail="d", facts={"status": 200, "code": "x", "n": 1}).body))
    assert (document["status"], document["code"], document["n"]) == (409, "c", 1)
