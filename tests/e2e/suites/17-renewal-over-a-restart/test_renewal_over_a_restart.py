"""Certificates of seconds, renewed all through a run, while agents and coordinator die in the middle of renewals.

The run ends as if nothing had happened. Afterwards a site that was off until its certificate had ended recovers by its
signing key when its agent starts.
"""

from __future__ import annotations

import time

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.identity import (
    certificate_of,
    coordinator_events,
    live_briefly,
    seconds_left,
    site_events,
    site_state,
)
from tests.e2e.support.template import SMALL

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]

ANSWER_LOST = CrashPoint(
    name="certificate-in-its-row-answer-lost",
    target="coordinator.services.renew_certificate:renew_certificate",
    when="after",
)
NOT_SENT = CrashPoint(name="asked-for-not-sent", target="site_agent.link.identity_calls:IdentityCalls.renew")
NOT_KEPT = CrashPoint(name="answer-not-kept", target="site_agent.enrolment.renewal:keep_renewed")
NOT_CONFIRMED = CrashPoint(
    name="kept-old-key-not-erased", target="site_agent.enrolment.renewal_files:drop_renewal", nth=2
)


def test_run_over_renewals_that_die_in_the_middle_ends_and_a_site_that_was_away_recovers(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(sites=SMALL.sites)
    live_briefly(federation, certificate_s=8)
    first, second, third = SMALL.sites
    federation.define_coordinator(dies_at=[ANSWER_LOST])
    federation.define_site(first, dies_at=[NOT_SENT])
    federation.define_site(second, dies_at=[NOT_KEPT])
    federation.define_site(third, dies_at=[NOT_CONFIRMED])
    enrolled_with = {name: certificate_of(federation.site_dir(name)).serial_number for name in SMALL.sites}
    federation.start()
    run_id = federation.start_run(SMALL)
    for name in SMALL.sites:
        # What `wardround-site identity renew` leaves for an agent that runs: else nothing is due for a day.
        (federation.site_dir(name) / "renew.wish").touch()
    federation.wait_for_end(run_id, timeout_s=180)
    federation.wait_until(
        "each died where it had to", lambda: not any(federation.missed_crashes().values()), timeout_s=60
    )
    assert [found["round_attempt"] for found in federation.rounds(run_id)].count(0) >= 1
    for name in SMALL.sites:
        assert site_state(federation, name) == "ENROLLED"
        assert certificate_of(federation.site_dir(name)).serial_number != enrolled_with[name]

    federation.processes.stop(first)
    folder = federation.site_dir(first)
    time.sleep(max(0.0, seconds_left(folder)) + 0.5)
    federation.processes.start(first)
    federation.wait_until("it recovered", lambda: seconds_left(folder) > 0, timeout_s=60)
    federation.processes.stop(first)
    renewals = [event.event.facts["by"] for event in site_events(folder) if event.event.kind == "certificate.renewed"]
    assert "signing-key" in renewals
    assert "certificate" in renewals
    of_first = [
        event["facts"]["by"]
        for event in coordinator_events(federation, "certificate.renewed")
        if event["facts"]["site_id"] == first
    ]
    assert of_first.count("signing-key") >= 1
    assert coordinator_events(federation, "site.cloned") == []
