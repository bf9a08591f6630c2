"""A state folder is copied and both run: the site is suspended until an admin has looked. Crashes are no copies."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.identity import coordinator_events, live_briefly, site_events, site_state

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SITE = "st-mary"


def test_two_copies_of_a_folder_are_stopped_and_one_goes_on_when_the_other_is_gone(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(sites=[SITE])
    live_briefly(federation, certificate_s=3600)
    federation.start()

    # Twice killed in the middle of whatever it does, and the coordinator once: it is one site all the while.
    for _ in range(2):
        federation.wait_until("the agent runs", lambda: "agent_started" in federation.processes[SITE].log_text())
        federation.processes.kill(SITE)
        federation.processes.start(SITE)
    federation.processes.kill("coordinator")
    federation.start_coordinator()
    federation.wait_until(
        "the site is seen again", lambda: federation.client.get(f"/api/v1/sites/{SITE}")["last_seen_at"]
    )
    assert site_state(federation, SITE) == "ENROLLED"

    federation.processes.kill(SITE)
    copy = federation.folder / "copy"
    shutil.copytree(federation.site_dir(SITE), copy)
    federation.processes.define("copy", federation.site_arguments(copy))
    federation.processes.start("copy")
    federation.processes.start(SITE)
    federation.wait_until("the copy is found", lambda: site_state(federation, SITE) == "SUSPENDED", timeout_s=60)
    shown = federation.client.get(f"/api/v1/sites/{SITE}")
    assert shown["reason"] == "two copies of this site's state folder are in use"
    kinds = [event["kind"] for event in coordinator_events(federation, "site.cloned", "site.suspended")]
    assert kinds == ["site.cloned", "site.suspended"]

    # A person looked: one of them is gone, and the other is let in again.
    federation.processes.stop("copy")
    federation.client.post(f"/api/v1/sites/{SITE}:resume")
    before = federation.client.get(f"/api/v1/sites/{SITE}")["last_seen_at"]
    federation.processes.kill(SITE)
    federation.processes.start(SITE)
    federation.wait_until(
        "it is admitted again", lambda: federation.client.get(f"/api/v1/sites/{SITE}")["last_seen_at"] != before
    )
    federation.processes.stop(SITE)
    assert site_state(federation, SITE) == "ENROLLED"
    told = [
        event.event.facts["code"]
        for folder in (federation.site_dir(SITE), copy)
        for event in site_events(folder)
        if event.event.kind == "renewal.refused"
    ]
    assert "site-cloned" in told
