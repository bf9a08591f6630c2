"""A real run's candidate becomes a release by two persons, typed as people type it; a hospital takes its data back.

One person alone, a token without its passphrase, the admin, and whoever may not are refused, each with its own code.
The folder verifies with nothing but itself, and not after a file was altered. A dataset that is withdrawn while the
hospital's agent is down is told when it is up again, and marks the release; one that is withdrawn is given out no more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.federation import Federation
from tests.e2e.support.template import DATASET, ENVIRONMENT, Study
from tests.e2e.support.verdicts import audit_events, verified_audit
from wardround.demo.coordinator_host import (
    LEAD,
    LEAD_PASSPHRASE,
    LEAD_TOKEN,
    PRIVACY_OFFICER,
    PRIVACY_PASSPHRASE,
    PRIVACY_TOKEN,
)
from wardround.documents import text_of

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

STUDY = Study(name="gate", rounds=1, steps=2, changes=(("evaluation.metrics", ("loss", "sites-made-worse")),))
SITE = STUDY.sites[1]
NO_COORDINATOR = {key: value for key, value in ENVIRONMENT.items() if not key.startswith("WARDROUND_")}
Typed = tuple[int, dict[str, object]]


class Person:
    """Types ``wardround`` commands in one user's name."""

    def __init__(self, federation: Federation, token: str, passphrase: str) -> None:
        self._environment = {
            **ENVIRONMENT,
            "WARDROUND_URL": federation.client.url,
            "WARDROUND_TOKEN_FILE": str(federation.folder / token),
            "WARDROUND_ROOT_FILE": str(federation.folder / "root.pem"),
        }
        self.passphrase_file = federation.folder / passphrase

    def types(self, *words: str) -> Typed:
        return typed(self._environment, *words)

    def approves(self, release_id: str, *, passphrase: Path | None = None) -> Typed:
        file = str(passphrase or self.passphrase_file)
        return self.types("releases", "approve", release_id, "--meaning", "read by a test", "--passphrase-file", file)


def typed(environment: dict[str, str], *words: str) -> Typed:
    command = [sys.executable, "-m", "wardround", *words, "--json"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return answer.returncode, json.loads(answer.stdout)


def code_of(answer: Typed) -> tuple[int, object]:
    error = answer[1]["error"]
    assert isinstance(error, dict)
    return answer[0], error["code"]


def test_candidate_is_released_by_two_and_marked_when_a_hospital_takes_its_data_back(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation(sites=STUDY.sites)
    federation.start()
    run_id = federation.start_run(STUDY)
    federation.wait_for_end(run_id)
    release = federation.wait_until(
        "there is a candidate", lambda: next(federation.client.pages("/api/v1/releases", run_id=run_id), None)
    )
    assert release is not None
    release_id = text_of(release, "release_id")
    lead = Person(federation, LEAD_TOKEN, LEAD_PASSPHRASE)
    officer = Person(federation, PRIVACY_TOKEN, PRIVACY_PASSPHRASE)
    admin = Person(federation, "admin.token", LEAD_PASSPHRASE)

    _signs(release_id, lead=lead, officer=officer, admin=admin, folder=tmp_path)
    federation.processes.stop("coordinator")
    _verifies_alone(tmp_path / "release")
    federation.start_coordinator()
    _is_marked_when_data_is_taken_back(federation, lead, release_id)

    code, withdrawn = officer.types("releases", "withdraw", release_id, "--reason", "a dataset was taken back")
    assert (code, withdrawn["state"]) == (0, "WITHDRAWN")
    assert code_of(lead.types("releases", "download", release_id, str(tmp_path / "late"))) == (1, "state-conflict")
    kinds = [event["kind"] for event in verified_audit(federation)]
    told = [kind for kind in kinds if kind.startswith("release.") or kind == "dataset.withdrawn"]
    assert told == [
        "release.created",
        "release.approved",
        "release.approved",
        "release.published",
        "dataset.withdrawn",
        "release.marked",
        "release.withdrawn",
    ]


def _signs(release_id: str, *, lead: Person, officer: Person, admin: Person, folder: Path) -> None:
    assert code_of(admin.types("releases", "review", release_id, str(folder / "admins"))) == (3, "role-insufficient")
    assert code_of(admin.approves(release_id)) == (3, "role-insufficient")
    code, reviewed = lead.types("releases", "review", release_id, str(folder / "candidate"))
    assert (code, reviewed["is_released"]) == (0, False)
    assert code_of(typed(NO_COORDINATOR, "releases", "verify", str(folder / "candidate"))) == (1, "evidence-fault")

    assert code_of(lead.approves(release_id, passphrase=officer.passphrase_file)) == (3, "reauthentication-failed")
    code, approved = lead.approves(release_id)
    assert (code, approved["state"]) == (0, "APPROVED")
    assert approved["manifest_sha256"] == reviewed["manifest_sha256"]
    assert code_of(lead.approves(release_id)) == (3, "four-eyes")
    early = lead.types("releases", "download", release_id, str(folder / "early"))
    assert code_of(early) == (1, "state-conflict")

    code, published = officer.approves(release_id)
    assert (code, published["state"]) == (0, "PUBLISHED")
    code, downloaded = admin.types("releases", "download", release_id, str(folder / "release"))
    assert (code, downloaded["is_released"]) == (0, True)


def _verifies_alone(release: Path) -> None:
    code, verified = typed(NO_COORDINATOR, "releases", "verify", str(release))
    assert code == 0, verified
    signatures = verified["signatures"]
    assert isinstance(signatures, list)
    assert [(one["user"], one["role"], one["meaning"]) for one in signatures] == [
        (f"user:{LEAD}", "study-lead", "read by a test"),
        (f"user:{PRIVACY_OFFICER}", "privacy-officer", "read by a test"),
    ]
    assert (verified["site_approvals"], verified["rounds"]) == (3, 2)
    # Three real trainers evaluated both adapters; how the two steps went at each, nobody here can know.
    assert re.search(
        r"\| sites at which .+ worse than the initial one \| [0-3] of 3 \|", (release / "README.md").read_text()
    )
    weights = release / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, refused = typed(NO_COORDINATOR, "releases", "verify", str(release))
    error = refused["error"]
    assert isinstance(error, dict)
    assert (code, error["facts"]["reason"], error["facts"]["file"]) == (1, "file-altered", weights.name)
    weights.write_bytes(content)


def _is_marked_when_data_is_taken_back(federation: Federation, lead: Person, release_id: str) -> None:
    federation.processes.stop(SITE)
    words = [sys.executable, "-m", "site_agent", "--json", "--state-dir", str(federation.site_dir(SITE))]
    words += ["datasets", "withdraw", DATASET]
    subprocess.run(words, env=ENVIRONMENT, capture_output=True, timeout=120, check=True)
    code, before = lead.types("releases", "show", release_id)
    assert (code, before["marks"]) == (0, [])
    federation.processes.start(SITE)
    marks = federation.wait_until(
        "the release is marked", lambda: lead.types("releases", "show", release_id)[1]["marks"], timeout_s=60
    )
    assert isinstance(marks, list)
    assert [(mark["kind"], mark["cause"].split("@")[0]) for mark in marks] == [
        ("dataset-withdrawn", f"{SITE}/{DATASET}")
    ]
    events = audit_events(federation.client.text("/api/v1/audit/export"))
    (told,) = [event for event in events if event["kind"] == "dataset.withdrawn"]
    assert (told["actor"], told["facts"]["dataset"], told["facts"]["sha256"]) == (f"site:{SITE}", DATASET, None)
