"""A serving coordinator is backed up in the middle of a round, goes on, is destroyed, and is restored elsewhere.

What it said after the backup is lost to it and not to its sites. It must say so, open nothing before an admin has seen
it, and then go on with the same sites, which kept their keys, their states and their approvals: every round committed
once, all sites at one state, every log verified.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.crash_points import CrashPoint
from tests.e2e.support.federation import COORDINATOR
from tests.e2e.support.template import ENVIRONMENT, RECORD_COUNTS, SMALL
from tests.e2e.support.verdicts import released_adapter, settled_state, sums_of_rounds, verified_audit

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

REVEALED = CrashPoint(
    name="sum-of-round-1-not-begun",
    target="coordinator.services.aggregate_round:aggregate_round",
    match={"1.round_index": "1"},
)
"""The last moment before sites may hold a result that a backup lacks: after it a run ends ``restored-behind-sites``."""


def test_coordinator_destroyed_after_a_backup_in_mid_round_sites_go_on_with_the_restored_one(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(sites=SMALL.sites)
    federation.define_coordinator(dies_at=[REVEALED], comes_back=False)
    federation.start()
    run_id = federation.start_run(SMALL)
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    federation.client.post(f"/api/v1/runs/{run_id}:pause")
    federation.wait_until("round 0 is committed", lambda: federation.counted(run_id, 0))

    # In the middle of round 1: two have trained, and the third does not answer.
    federation.suspend_process("ucsf")
    federation.client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until("st-mary has trained", lambda: federation.participation(run_id, 1, "st-mary") == "READY")
    passphrase, backup = federation.folder / "passphrase", federation.folder / "backup.tar"
    passphrase.write_text("a passphrase that only this test knows\n")
    passphrase.chmod(0o600)
    config = str(federation.coordinator_dir / "coordinator.yaml")
    coordinator("backup", str(backup), "--config", config, "--passphrase-file", str(passphrase))

    # It goes on until its sites have said everything of round 1 and none can have its result; then it is gone.
    federation.continue_process("ucsf")
    federation.wait_until("it died before the sum", lambda: not federation.processes.is_running(COORDINATOR))
    assert not federation.missed_crashes()
    shutil.rmtree(federation.coordinator_dir)

    federation.coordinator_dir = federation.folder / "restored"
    coordinator("restore", str(backup), str(federation.coordinator_dir), "--passphrase-file", str(passphrase))
    federation.define_coordinator()
    federation.start_coordinator()
    federation.wait_until("it says that it was restored", lambda: "restored" in federation.waits_for(run_id))
    federation.wait_until("a site said what it saw", lambda: "no site has said" not in federation.waits_for(run_id))
    config = str(federation.coordinator_dir / "coordinator.yaml")
    coordinator("acknowledge-restore", "--by", "maria", "--config", config)

    federation.wait_for_end(run_id)
    rounds = federation.rounds(run_id)
    assert [found["state"] for found in rounds] == ["COMMITTED"] * 3
    assert [federation.counted(run_id, index) for index in range(3)] == [set(SMALL.sites)] * 3
    n_records = sum(RECORD_COUNTS[site] for site in SMALL.sites)
    assert [row[0] for row in sums_of_rounds(federation, run_id)[:-1]] == [n_records, n_records]
    settled_state(federation, run_id, SMALL.sites)
    assert released_adapter(federation, run_id)
    events = verified_audit(federation)
    committed = [event["facts"]["round_index"] for event in events if event["kind"] == "round.committed"]
    assert committed == [0, 1, 2]
    assert {federation.processes[site].n_starts for site in SMALL.sites} == {1}


def coordinator(*words: str) -> None:
    """A command of the coordinator's program."""
    outcome = subprocess.run(
        [sys.executable, "-m", "coordinator", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == 0, (words, outcome.stdout, outcome.stderr)
