"""A coordinator whose folder is put back to an older copy between rounds, and goes on as if nothing had been.

Its sites saw a longer history. They must refuse with ``history-forked``, each with the coordinator's own signature over
both histories in its log; the two logs side by side must convict it; and when the right folder is back, the same sites
go on to the end without anybody's help.
"""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.audit_exports import export_coordinator, export_sites, verify
from tests.e2e.support.federation import COORDINATOR, Federation
from tests.e2e.support.template import SMALL
from tests.e2e.support.verdicts import audit_events, verified_outcome

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]


def pause(federation: Federation, run_id: str) -> None:
    federation.client.post(f"/api/v1/runs/{run_id}:pause")


def resume(federation: Federation, run_id: str) -> None:
    federation.client.post(f"/api/v1/runs/{run_id}:resume")


def swap(federation: Federation, *, put_back: str, keep_as: str) -> None:
    """Stop the coordinator, keep its folder under one name and put another in its place."""
    federation.processes.stop(COORDINATOR)
    folder = federation.coordinator_dir
    folder.rename(folder.with_name(keep_as))
    shutil.copytree(folder.with_name(put_back), folder)
    federation.start_coordinator()


def reasons(federation: Federation, run_id: str) -> set[object]:
    """Why sites left round 1, as the coordinator heard it."""
    found = federation.round(run_id, 1)
    rows = found["participations"] if found is not None else []
    assert isinstance(rows, list)
    return {row["reason"] for row in rows}


def kinds_of(federation: Federation, site: str) -> list[tuple[str, dict[str, object]]]:
    file = federation.folder / f"audit-{site}.jsonl"
    return [(str(event["kind"]), event["facts"]) for event in audit_events(file.read_text())]  # type: ignore[misc]


def test_coordinator_put_back_to_an_older_copy_is_refused_convicted_and_joined_again_when_it_is_right(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(sites=SMALL.sites)
    federation.start()
    run_id = federation.start_run(SMALL)
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    pause(federation, run_id)
    federation.wait_until("round 0 is committed", lambda: federation.counted(run_id, 0))
    federation.processes.stop(COORDINATOR)
    shutil.copytree(federation.coordinator_dir, federation.coordinator_dir.with_name("older"))
    federation.start_coordinator()

    resume(federation, run_id)
    federation.wait_until("round 1 is open", lambda: federation.round(run_id, 1))
    pause(federation, run_id)
    federation.wait_until("round 1 is committed", lambda: federation.counted(run_id, 1))

    swap(federation, put_back="older", keep_as="right")
    resume(federation, run_id)
    # The first word ends the attempt, so that the others' are late; each says it in its own log, and again next time.
    federation.wait_until(
        "every site refused",
        lambda: all("history_forked" in federation.processes[site].log_text() for site in SMALL.sites),
    )
    federation.wait_until("the coordinator knows why", lambda: "history-forked" in reasons(federation, run_id))
    for document in federation.call_sites("status").values():
        agent = document["agent"]
        assert isinstance(agent, dict)
        assert agent["refused_because"] == "history-forked"
    forked = export_coordinator(federation, "forked")
    sites = export_sites(federation)
    for site in SMALL.sites:
        (fork,) = [facts for kind, facts in kinds_of(federation, site) if kind == "history.forked"]
        assert fork["log"] == "coordinator"
        assert fork["seen_head"] != fork["log_head"]
    # Each of the three logs suffices; none of the sites has to be believed.
    for site_export in sites:
        code, document = verify(forked, [site_export])
        error = document["error"]
        assert isinstance(error, dict)
        assert code == 1
        assert error["facts"]["kind"] in {"two-histories", "shorter-than-stated"}
    # Alone its log is whole: no checkpoint and no link of it is wrong.
    assert verify(forked)[0] == 0

    swap(federation, put_back="right", keep_as="forked")
    resume(federation, run_id)
    verified_outcome(federation, run_id, SMALL)
    right, sites = export_coordinator(federation, "right"), export_sites(federation)
    # The right log is whole; that the other one was shown, and signed, stays in the sites' logs for ever.
    code, document = verify(right, sites)
    error = document["error"]
    assert isinstance(error, dict)
    assert (code, error["facts"]["kind"]) == (1, "two-histories")
