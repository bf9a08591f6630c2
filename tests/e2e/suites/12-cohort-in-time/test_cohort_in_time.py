"""Five sites, a quorum of three: one never starts, one is suspended in the middle of a round, one comes late.

The run must wait for its quorum instead of failing, go on without who is away, take the late one into the next round,
hold a pause, go on when it is resumed, and end when it is cancelled. At every wait `wardround runs show` says in one
sentence what is waited for, and each round's sum holds exactly the sites that it counts.
"""

from __future__ import annotations

import json

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.template import RECORD_COUNTS, SITES, Study
from tests.e2e.support.verdicts import sums_of_rounds, verified_audit

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

ST_MARY, CHARITE, LATE, SUSPENDED, NEVER = SITES
COHORT = Study(name="cohort", rounds=3, sites=SITES, quorum=3)


def test_quorum_late_suspended_and_absent_sites_pause_resume_and_cancel(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=SITES)
    client = federation.client
    federation.start(sites=(ST_MARY, CHARITE))
    run_id = federation.start_run(COHORT)

    def says(*words: str) -> bool:
        said = federation.waits_for(run_id)
        return all(word in said for word in words)

    # Too few have approved: the run waits, and says for whom.
    federation.wait_until("two have approved", lambda: says("3 approvals", "has 2", LATE, SUSPENDED, NEVER))
    assert federation.run(run_id)["state"] == "AWAITING_SITES"

    # The third makes the quorum. Paused in its first round, the run ends that round and opens no other.
    federation.processes.start(SUSPENDED)
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    client.post(f"/api/v1/runs/{run_id}:pause")
    federation.wait_until("round 0 is committed", lambda: federation.counted(run_id, 0))
    assert federation.counted(run_id, 0) == {ST_MARY, CHARITE, SUSPENDED}
    assert says("paused", "resume")
    assert federation.run(run_id)["state"] == "PAUSED"

    # The late one approves while the run is paused, and is in the next round; another does not answer any more.
    federation.processes.start(LATE)
    federation.wait_until("the late site approved", lambda: LATE in _approvals(federation.run(run_id)))
    federation.wait_until("sites settled round 0", lambda: _phase(federation, SUSPENDED) == "settled")
    federation.suspend_process(SUSPENDED)
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until(
        "round 1 waits for one site only",
        lambda: says("Round 1", "waits for training at", f"{SUSPENDED} (has not begun)"),
    )
    federation.wait_until("the late site trained", lambda: federation.participation(run_id, 1, LATE) == "READY")

    # Suspended in the middle of the round, it is not waited for; paused again, the run opens no round after this.
    client.post(f"/api/v1/runs/{run_id}:pause")
    assert says("then the run is paused until a person resumes it")
    client.post(f"/api/v1/sites/{SUSPENDED}:suspend", {"reason": "Its steward asked for it."})
    federation.wait_until("round 1 is committed", lambda: federation.counted(run_id, 1))
    assert federation.counted(run_id, 1) == {ST_MARY, CHARITE, LATE}
    assert federation.participation(run_id, 1, SUSPENDED) == "DROPPED"
    federation.continue_process(SUSPENDED)

    # Cancelled in the middle of a round, the run ends, and so does the round; the sites rest.
    federation.wait_until("sites settled round 1", lambda: _phase(federation, CHARITE) == "settled")
    federation.suspend_process(CHARITE)
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until("round 2 waits", lambda: says("Round 2", f"{CHARITE} (has not begun)"))
    client.post(f"/api/v1/runs/{run_id}:cancel", {"reason": "Enough was learned."})
    federation.wait_for_end(run_id, state="CANCELLED")
    assert says("cancelled")
    federation.wait_until("round 2 is aborted", lambda: (federation.round(run_id, 2) or {}).get("state") == "ABORTED")
    federation.continue_process(CHARITE)
    for site in (ST_MARY, CHARITE, LATE):
        federation.wait_until(f"{site} rests", lambda site=site: _phase(federation, site) != "training")
    # A site that waits for its next round learns of the end all the same, and takes the run for over.
    for site in (ST_MARY, CHARITE, LATE):
        federation.wait_until(f"{site} knows", lambda site=site: _state(federation, site, run_id) == "ended")
        assert federation.call_site(site, "runs", "approve", run_id)["exit"] == 1

    # Each sum holds the records of exactly the sites that it counts.
    counted = [sum(RECORD_COUNTS[site] for site in federation.counted(run_id, index)) for index in (0, 1)]
    assert [row[0] for row in sums_of_rounds(federation, run_id)] == counted
    verified_audit(federation)


def _approvals(run: dict[str, object]) -> set[str]:
    rows = run["approvals"]
    assert isinstance(rows, list)
    return {str(row["site_id"]) for row in rows if row["decision"] == "approved"}


def _state(federation: object, site: str, run_id: str) -> object:
    """What the site takes the run for."""
    return federation.call_site(site, "runs", "show", run_id)["state"]  # type: ignore[attr-defined]


def _phase(federation: object, site: str) -> str:
    """What the site's own status says it is at."""
    return str(json.loads((federation.site_dir(site) / "status.json").read_text())["state"])  # type: ignore[attr-defined]
