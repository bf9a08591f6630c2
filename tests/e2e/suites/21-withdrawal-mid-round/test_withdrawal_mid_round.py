"""Hospitals take their word back in the middle of rounds: by a run, by a dataset, and with an agent that is killed.

Training stops within two seconds, also where the trainer hangs; the round that is under way and all that follow go on
without the hospital, once enough are left; when too few are, the run waits and says whose word is gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.federation import Federation
from tests.e2e.support.template import DATASET, RECORD_COUNTS, SITES, Study
from tests.e2e.support.verdicts import sums_of_rounds, verified_audit

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]

ST_MARY, CHARITE, UCSF, KAROLINSKA, RIGS = SITES
STUDY = Study(name="withdrawn", rounds=6, sites=SITES, quorum=3)
AT_ONCE_S = 2.0
WITHDRAWN_AND_NOT_SAID = CrashPoint(
    name="withdrawn-and-not-said", target="site_agent.link.client:CoordinatorClient.withdraw"
)


def stop_in_training(federation: Federation, run_id: str, index: int, site: str) -> int:
    """Let the trainer of a site hang in the round (SIGSTOP), so that the round is under way for as long as we like."""

    def look() -> int | None:
        pid = federation.trainer_pid(site)
        if pid is None or not psutil.pid_exists(pid):
            return None
        os.kill(pid, signal.SIGSTOP)
        if federation.participation(run_id, index, site) == "TRAINING":
            return pid
        os.kill(pid, signal.SIGCONT)
        return None

    return federation.wait_until(f"{site} trains in round {index}", look) or 0


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def seconds_until_gone(pid: int) -> float:
    started = time.monotonic()
    while not is_gone(pid):
        assert time.monotonic() - started < 30, "the trainer was not ended"
        time.sleep(0.02)
    return time.monotonic() - started


def test_hospitals_withdraw_in_the_middle_of_rounds(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=SITES)
    client = federation.client
    federation.define_site(KAROLINSKA, dies_at=[WITHDRAWN_AND_NOT_SAID])
    federation.start()
    run_id = federation.start_run(STUDY)

    def is_out(index: int, site: str) -> Callable[[], bool]:
        return lambda: federation.participation(run_id, index, site) == "DECLINED"

    # Round 0: the steward of charite takes the approval back while its trainer hangs.
    federation.wait_until("all five approved", lambda: len(federation.run(run_id)["approvals"]) == 5)  # type: ignore[arg-type]
    joined = federation.wait_until(
        # A round may open with the quorum that approved first; of three sites none could be spared.
        "a round has all five",
        lambda: _newest_with(federation, run_id, *SITES),
        timeout_s=120,
    )
    index = int(str(joined["round_index"]))
    client.post(f"/api/v1/runs/{run_id}:pause")
    trainer = stop_in_training(federation, run_id, index, CHARITE)
    said = federation.call_site(CHARITE, "runs", "withdraw", run_id, "--reason", "A patient took consent back.")
    assert (said["exit"], said["state"]) == (0, "withdrawn")
    assert seconds_until_gone(trainer) < AT_ONCE_S
    federation.wait_until("charite is out of the round", is_out(index, CHARITE))
    assert federation.reason(run_id, index, CHARITE) == "run-withdrawn"
    assert list((federation.site_dir(CHARITE) / "jobs").glob("run-*/*/payload.safetensors")) == []
    federation.wait_until("the round is committed", lambda: federation.counted(run_id, index))
    assert CHARITE not in federation.counted(run_id, index)
    assert federation.call_site(CHARITE, "runs", "approve", run_id)["exit"] == 1

    # The next round: karolinska's agent is killed between its steward's word and the coordinator's hearing of it.
    trainer = federation.trainer_pid(KAROLINSKA) or 0
    assert trainer > 0, "it is warm since the round before"
    os.kill(trainer, signal.SIGSTOP)
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until(
        "karolinska trains", lambda: federation.participation(run_id, index + 1, KAROLINSKA) == "TRAINING"
    )
    client.post(f"/api/v1/runs/{run_id}:pause")
    federation.call_site(KAROLINSKA, "runs", "withdraw", run_id, "--reason", "The ethics vote has ended.")
    # Whoever comes first: the agent that dies, or the next one that finds what it left.
    federation.wait_until("its trainer is ended", lambda: is_gone(trainer))
    federation.wait_until("karolinska is out of the round", is_out(index + 1, KAROLINSKA))
    federation.wait_until("the agent died and came back", lambda: not federation.missed_crashes())
    federation.wait_until("the round is committed", lambda: federation.counted(run_id, index + 1))
    assert federation.counted(run_id, index + 1) == {ST_MARY, UCSF, RIGS}

    # Between rounds: a dataset is withdrawn, and with it the approval of the run. Two are left, and the run waits.
    said = federation.call_site(RIGS, "datasets", "withdraw", DATASET)
    assert (said["exit"], said["withdrawn_runs"]) == (0, [run_id])
    gone = {CHARITE, KAROLINSKA, RIGS}
    federation.wait_until("the coordinator heard of all", lambda: _withdrawn(federation, run_id) == gone)
    n_rounds = len(federation.rounds(run_id))
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until(
        "the run waits for a third hospital", lambda: "1 more of 3 sites" in federation.waits_for(run_id)
    )
    words = federation.waits_for(run_id)
    assert all(f"{site} (withdrew its approval" in words for site in gone)
    assert len(federation.rounds(run_id)) == n_rounds
    client.post(f"/api/v1/runs/{run_id}:cancel", {"reason": "Too few are left."})
    federation.wait_for_end(run_id, state="CANCELLED")

    for place in (index, index + 1):
        expected = sum(RECORD_COUNTS[site] for site in federation.counted(run_id, place))
        assert sums_of_rounds(federation, run_id)[place][0] == expected
    events = verified_audit(federation)
    withdrawn = [event["facts"]["site_id"] for event in events if event["kind"] == "run.withdrawn"]
    assert sorted(withdrawn) == sorted(gone)
    # Why is the hospital's own business.
    assert [facts["reason"] for facts in federation.site_events(CHARITE, "run.withdrawn")] == [
        "A patient took consent back."
    ]
    assert "consent" not in client.text("/api/v1/audit/export")


def _newest_with(federation: Federation, run_id: str, *sites: str) -> dict[str, object] | None:
    rounds = federation.rounds(run_id)
    newest = rounds[-1] if rounds else None
    if newest is None or newest["state"] != "TRAINING":
        return None
    index = int(str(newest["round_index"]))
    return newest if all(federation.participation(run_id, index, site) for site in sites) else None


def _withdrawn(federation: Federation, run_id: str) -> set[str]:
    """The sites that took their word back, as the coordinator knows it."""
    rows = federation.run(run_id)["approvals"]
    assert isinstance(rows, list)
    return {str(row["site_id"]) for row in rows if row["decision"] == "withdrawn"}
