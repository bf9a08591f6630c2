"""Somebody else was faster with the code: the hospital notices, the admin shuts the thief out, nothing was summed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.identity import agent_status, call_site, coordinator_events, site_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_thief_who_was_first_is_noticed_and_shut_out(make_federation: MakeFederation, tmp_path: Path) -> None:
    federation = make_federation(sites=())
    federation.start_coordinator()

    def enrol(folder: Path, invitation: dict[str, object]) -> tuple[int, str]:
        answer = call_site(
            folder,
            "enrol",
            "--coordinator",
            str(invitation["enrolment_address"]),
            "--code",
            str(invitation["code"]),
            "--root-fingerprint",
            str(invitation["root_fingerprint"]),
        )
        return answer.exit_code, answer.error_code if answer.exit_code else ""

    invitation = federation.client.post("/api/v1/sites", {"name": "lausanne"})
    thief, hospital = tmp_path / "thief", tmp_path / "hospital"
    assert enrol(thief, invitation) == (0, "")
    federation.processes.define("thief", federation.site_arguments(thief))
    federation.processes.start("thief")
    federation.wait_until(
        "the thief is admitted", lambda: federation.client.get("/api/v1/sites/lausanne")["last_seen_at"]
    )
    # The hospital cannot enrol, and is told why. Its code is worth a telephone call.
    assert enrol(hospital, invitation) == (3, "enrolment-code-spent")

    federation.client.post("/api/v1/sites/lausanne:revoke", {"reason": "the code was stolen"})
    federation.wait_until("the thief is refused", lambda: agent_status(thief)["problem"] == "coordinator-refused")
    renewal = call_site(thief, "identity", "renew", "--wait", "2")
    assert renewal.exit_code == 5
    federation.processes.stop("thief")
    # Nor without the agent that is in the way; and the name is burnt: nobody is that site any more.
    alone = call_site(thief, "identity", "renew")
    assert (alone.exit_code, alone.document["error"]["facts"]["refusal_code"]) == (1, "site-not-active")
    assert site_state(federation, "lausanne") == "REVOKED"
    second = federation.client.post("/api/v1/sites", {"name": "lausanne-2"})
    assert enrol(hospital, second) == (0, "")
    events = coordinator_events(federation, "site.enrolled", "site.revoked")
    told = [(event["kind"], event["facts"]["site_id"]) for event in events if "lausanne" in event["facts"]["site_id"]]
    assert told == [("site.enrolled", "lausanne"), ("site.revoked", "lausanne"), ("site.enrolled", "lausanne-2")]
