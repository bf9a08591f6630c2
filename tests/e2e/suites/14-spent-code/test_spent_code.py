"""An enrolment code is used once: again by the same keys it is a lost answer, by others it is spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.identity import call_site, coordinator_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_code_is_of_use_to_the_first_keys_only_however_often_they_ask(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation(sites=())
    federation.start_coordinator()
    invitation = federation.client.post("/api/v1/sites", {"name": "lausanne"})
    words = (
        "enrol",
        "--coordinator",
        str(invitation["enrolment_address"]),
        "--code",
        str(invitation["code"]),
        "--root-fingerprint",
        str(invitation["root_fingerprint"]),
    )
    first, second = tmp_path / "first", tmp_path / "second"
    enrolled = call_site(first, *words)
    assert (enrolled.exit_code, enrolled.document["site_id"]) == (0, "lausanne")
    # The answer was lost: the keys are there, and who it is was never written.
    (first / "certs" / "identity.json").unlink()
    again = call_site(first, *words)
    assert (again.exit_code, again.document["signing_key_sha256"]) == (0, enrolled.document["signing_key_sha256"])
    assert call_site(first, "identity", "show").exit_code == 0

    refused = call_site(second, *words)
    assert (refused.exit_code, refused.error_code) == (3, "enrolment-code-spent")
    assert not (second / "certs").exists()
    shown = federation.client.get("/api/v1/sites/lausanne")
    assert (shown["state"], shown["signing_key_sha256"]) == ("ENROLLED", enrolled.document["signing_key_sha256"])
    events = coordinator_events(federation, "site.enrolled")
    mine = [event for event in events if event["facts"]["site_id"] == "lausanne"]
    assert {event["facts"]["signing_key_sha256"] for event in mine} == {enrolled.document["signing_key_sha256"]}
    # The secret stands nowhere: not in the database, not in a log.
    secret = str(invitation["code"]).split("-")[1].encode()
    written = [path for path in federation.folder.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert written == []
