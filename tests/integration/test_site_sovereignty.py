"""The commands by which a hospital says how long, over which data, and no more: as typed, on real files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from site_agent.approvals.run_records import unsent_statements
from site_agent.approvals.statement import Decision
from site_agent.db.tx import open_site_db
from site_agent.folder import SiteFolder
from tests.integration.test_site_commands import POLICY, RUN_ID, Program, folder, list_peers, program

__all__ = ["folder", "program"]

SECRET = "Xylophone-4711"
"""Stands in every record of these tests; nothing that a command says may hold it."""

SCHEMA = {
    "id": {"type": "text", "max_length": 12},
    "prompt": {"type": "text"},
    "completion": {"type": "text"},
    "person": {"type": "text"},
    "year": {"type": "integer", "at_least": 1990, "at_most": 2030},
}


def record(number: int, **changes: object) -> dict[str, object]:
    words = {"id": f"r{number}", "prompt": f"{SECRET}?", "completion": f"{SECRET}!"}
    return {**words, "person": f"p{number % 7}", "year": 2001, **changes}


def write_dataset(where: SiteFolder, *records: dict[str, object], **declared: object) -> Path:
    data = where.root / "notes.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in records))
    document = {
        "name": "notes",
        "path": str(data),
        "purposes": ["research"],
        "patient_field": "person",
        "schema": SCHEMA,
        **declared,
    }
    declaration = where.root / "notes.yaml"
    declaration.write_text(yaml.safe_dump(document))
    return declaration


def expiry_of(said: Program) -> str:
    db = open_site_db(said.folder.database)
    statements = db.run_read("unsent", unsent_statements)
    db.close()
    return str(json.loads(statements[-1].statement.body)["expires_at"])


def test_runs_approve_until_a_day_ends_with_that_day_here_and_show_tells_it(program: Program) -> None:
    list_peers(program)
    day = (datetime.now().astimezone() + timedelta(days=30)).date()
    exit_code, document = program("runs", "approve", RUN_ID, "--until", day.isoformat())
    midnight = datetime.combine(day + timedelta(days=1), datetime.min.time()).astimezone(UTC)
    assert (exit_code, document["expires_at"]) == (0, f"{midnight:%Y-%m-%dT%H:%M:%S.%fZ}")
    assert expiry_of(program) == document["expires_at"]
    _, page = program("runs", "show", RUN_ID)
    assert page["expires_at"] == document["expires_at"]
    assert f"ends at {midnight:%Y-%m-%d %H:%M} UTC" in program.text("runs", "show", RUN_ID)[1]
    rules = {rule["rule"]: rule["is_met"] for rule in program("policy", "explain", RUN_ID)[1]["rules"]}  # type: ignore[attr-defined]
    assert rules["approval-expired"] is True
    assert rules["hours.train"] is True


@pytest.mark.parametrize(
    ("until", "exit_code", "code"),
    [
        ("tomorrow", 2, "wrong-usage"),
        ("2027-06-30T12:00:00", 2, "wrong-usage"),
        ("2020-01-01", 2, "expiry-invalid"),
        ("2199-01-01", 3, "policy-denied"),
    ],
)
def test_runs_approve_until_what_is_no_end_is_refused(program: Program, until: str, exit_code: int, code: str) -> None:
    list_peers(program)
    found, document = program("runs", "approve", RUN_ID, "--until", until)
    assert (found, document["error"]["code"]) == (exit_code, code)  # type: ignore[index]


def test_runs_withdraw_is_for_an_approved_run_and_ends_it(program: Program) -> None:
    words = ("runs", "withdraw", RUN_ID, "--reason", "consent was withdrawn")
    exit_code, document = program(*words)
    assert (exit_code, document["error"]["code"]) == (1, "run-not-approved")  # type: ignore[index]
    list_peers(program)
    program("runs", "approve", RUN_ID)
    assert program("runs", "withdraw", RUN_ID, "--reason", " ")[0] == 2
    exit_code, document = program(*words)
    assert (exit_code, document["state"]) == (0, "withdrawn")
    assert program(*words)[0] == 1
    assert program("audit", "verify")[0] == 0


def test_datasets_register_and_check_look_at_every_record_and_tell_places_only(program: Program) -> None:
    faulty = write_dataset(
        program.folder,
        record(1),
        record(2, year=SECRET, **{SECRET: SECRET}),
        record(3, prompt=None),
        record(4, year=2031),
    )
    exit_code, document = program("datasets", "register", str(faulty))
    error = document["error"]
    assert isinstance(error, dict)
    assert (exit_code, error["code"], error["facts"]["failure_code"]) == (
        1,
        "dataset-file-invalid",
        "dataset-malformed",
    )
    assert error["faults"] == [
        "notes.jsonl, line 2, year: not-a-whole-number",
        "notes.jsonl, line 2: undeclared-field",
        "notes.jsonl, line 3, prompt: missing",
        "notes.jsonl, line 4, year: too-large",
    ]
    exit_code, text = program.text("datasets", "register", str(faulty))
    assert "notes: notes.jsonl, line 3, prompt: missing" in text
    assert SECRET not in text + json.dumps(document)

    good = write_dataset(
        program.folder, *[record(k) for k in range(20)], consent="broad", legal_basis="gdpr-9-2-j", expires="2199-01-01"
    )
    exit_code, document = program("datasets", "register", str(good))
    assert (exit_code, document["records"], document["patients"]) == (0, 20, 7)
    assert (document["consent"], document["legal_basis"], document["expires_on"]) == (
        "broad",
        "gdpr-9-2-j",
        "2199-01-01",
    )
    assert program("datasets", "check", "notes")[1]["is_unchanged"] is True
    with (program.folder.root / "notes.jsonl").open("a") as file:
        file.write(json.dumps(record(20)) + "\n")
    exit_code, document = program("datasets", "check", "notes")
    assert (exit_code, document["is_unchanged"], document["found_records"]) == (1, False, 21)
    with (program.folder.root / "notes.jsonl").open("a") as file:
        file.write(SECRET + "\n")
    exit_code, document = program("datasets", "check", "notes")
    assert (exit_code, document["error"]["faults"]) == (1, ["notes.jsonl, line 22: not-json"])  # type: ignore[index]


def test_datasets_register_with_unknown_keys_or_a_day_that_is_over_is_refused(program: Program) -> None:
    exit_code, document = program(
        "datasets", "register", str(write_dataset(program.folder, record(1), expiry="2199-01-01"))
    )
    assert (exit_code, document["error"]["faults"][0].partition(":")[0]) == (2, "expiry")  # type: ignore[index]
    over = write_dataset(program.folder, record(1), expires="2020-01-01")
    exit_code, document = program("datasets", "register", str(over))
    assert (exit_code, document["error"]["code"]) == (1, "dataset-expired")  # type: ignore[index]


def test_datasets_withdraw_names_the_runs_that_went_with_it(program: Program) -> None:
    list_peers(program)
    program("runs", "approve", RUN_ID)
    exit_code, document = program("datasets", "withdraw", "medical-qa")
    assert (exit_code, document["withdrawn_runs"]) == (0, [RUN_ID])
    assert program("runs", "show", RUN_ID)[1]["state"] == "withdrawn"
    db = open_site_db(program.folder.database)
    decided = [unsent.decision for unsent in db.run_read("unsent", unsent_statements)]
    db.close()
    assert decided == [Decision.APPROVED, Decision.WITHDRAWN]


def test_status_tells_what_ends_soon_and_a_policy_that_cannot_be_read(program: Program) -> None:
    list_peers(program)
    today = datetime.now().astimezone().date()
    program("runs", "approve", RUN_ID, "--until", (today + timedelta(days=20)).isoformat())
    far = write_dataset(program.folder, record(1), expires=(today + timedelta(days=15)).isoformat())
    program("datasets", "register", str(far))
    assert program("status")[1]["ending"] == []
    program("runs", "approve", RUN_ID, "--until", (today + timedelta(days=5)).isoformat())
    program("datasets", "withdraw", "notes")
    near = write_dataset(program.folder, record(1), expires=(today + timedelta(days=13)).isoformat())
    program("datasets", "register", str(near))
    program.folder.policy_yaml.write_text("tasks: [")
    exit_code, document = program("status")
    policy, ending = document["policy"], document["ending"]
    assert isinstance(policy, dict)
    assert isinstance(ending, list)
    assert (exit_code, policy["is_readable"]) == (0, False)
    assert "the approval of medical-qa-round-1 ends at" in ending[0]
    assert ending[1] == f"the last day of the dataset notes is {today + timedelta(days=13)}"
    assert "CANNOT BE READ" in program.text("status")[1]


def test_policy_check_tells_its_version_and_refuses_a_key_that_stands_twice(program: Program) -> None:
    path = program.folder.policy_yaml
    exit_code, document = program("policy", "check", str(path))
    assert (exit_code, document["approval_lifetime_days"]) == (0, 90)
    assert program("policy", "explain", RUN_ID)[1]["policy_sha256"] == document["policy_sha256"]
    path.write_text(yaml.safe_dump(POLICY) + "tasks: [everything]\n")
    exit_code, document = program("policy", "check", str(path))
    assert exit_code == 2
    assert "stands twice" in document["error"]["faults"][0]  # type: ignore[index]
