from __future__ import annotations

import json

import pytest

from fl_protocol.errors import WardroundError
from site_agent.approvals.errors import PeersUnlistedError, PolicyDeniedError, RunUnknownError
from site_agent.cli.app import first_options_first
from site_agent.cli.console import NotInThisVersionError, exit_code_for, report_error
from site_agent.datasets.errors import DatasetFileError, DatasetUnknownError
from site_agent.db.errors import SiteDatabaseError
from site_agent.enrolment.errors import EnrolmentCodeExpiredError, EnrolmentUnreachableError, NotEnrolledError
from site_agent.policy.evaluate import Denied
from site_agent.policy.reading import PolicyFault, PolicyFaultsError


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (SiteDatabaseError("no disk"), 1),
        (DatasetFileError("record 3", failure_code="x", advice=""), 1),
        (NotInThisVersionError("later"), 2),
        (NotEnrolledError("enrol first", advice=""), 2),
        (PolicyFaultsError((PolicyFault(path="tasks", message="is not a list"),)), 2),
        (PolicyDeniedError(Denied(rule="tasks", value="a", limit="b")), 3),
        (PeersUnlistedError(("ucsf",)), 3),
        (EnrolmentCodeExpiredError("over", advice=""), 3),
        (RunUnknownError("none", advice=""), 4),
        (DatasetUnknownError("none", advice=""), 4),
        (EnrolmentUnreachableError("nobody", advice=""), 5),
    ],
)
def test_exit_code_for_each_outcome_is_the_promised_one(error: WardroundError, exit_code: int) -> None:
    assert exit_code_for(error) == exit_code


def test_report_error_as_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    error = PolicyFaultsError((PolicyFault(path="tasks", message="is not a list"),))
    assert report_error(error, is_json=True) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)["error"]
    assert (document["code"], document["faults"]) == ("policy-invalid", ["tasks: is not a list"])
    assert captured.err == ""


def test_report_error_for_people_says_what_to_do_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(EnrolmentUnreachableError("nobody answers", advice="Check the address."), is_json=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["Error: nobody answers", "Check the address."]


@pytest.mark.parametrize(
    ("typed", "ordered"),
    [
        (["status", "--json"], ["--json", "status"]),
        (
            ["runs", "approve", "r", "--state-dir", "d", "--json"],
            ["--state-dir", "d", "--json", "runs", "approve", "r"],
        ),
        (["--state-dir=d", "status"], ["--state-dir=d", "status"]),
        (["policy", "check", "--", "--json"], ["policy", "check", "--", "--json"]),
        (["status", "--state-dir"], ["--state-dir", "status"]),
    ],
)
def test_first_options_first_moves_them_and_nothing_else(typed: list[str], ordered: list[str]) -> None:
    assert first_options_first(typed) == ordered
