"""A hospital's own policy stops it from taking part, is changed while its agent runs, and is broken for a while.

Each denial names its rule at the site, with the run's value and the policy's limit, and to the coordinator the rule
alone. The run goes on among the others; a policy that was mended counts from the next round on, without a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.e2e.suites.conftest import MakeFederation
from tests.e2e.support.federation import Federation
from tests.e2e.support.template import DATASET, RECORD_COUNTS, SITES, Study
from tests.e2e.support.verdicts import sums_of_rounds, verified_audit

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]

FOUR = SITES[:4]
ST_MARY, CHARITE, UCSF, KAROLINSKA = FOUR
STUDY = Study(name="denied", rounds=3, sites=FOUR, quorum=3)
RANK_RULE = "adapters.max_rank"
CANARY = "canary-4711-of-the-board"
"""Stands in the policy files, as a remark of the hospital's board; nothing of a policy leaves but a rule's name."""


def policy_file(federation: Federation, site: str) -> Path:
    return federation.site_dir(site) / "policy.yaml"


def change_policy(federation: Federation, site: str, **sections: object) -> str:
    """Write a policy as an editor would, by another file in its place; its digest."""
    path = policy_file(federation, site)
    document = {**yaml.safe_load(path.read_text()), **sections}
    return put_policy(path, f"# {CANARY}\n{yaml.safe_dump(document)}")


def put_policy(path: Path, text: str) -> str:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)
    return hashlib.sha256(text.encode()).hexdigest()


def adapters(max_rank: int) -> Mapping[str, object]:
    return {"kinds": ["lora"], "max_rank": max_rank}


def own_data(federation: Federation, site: str) -> Path:
    """Register a copy of the site's data, with a schema, in the place of the file that all tests share."""
    shared = federation.template.root / "work" / "data" / f"{site}.jsonl"
    copy = federation.site_dir(site) / "records.jsonl"
    copy.write_bytes(shared.read_bytes())
    declaration = copy.with_suffix(".yaml")
    fields = {name: {"type": "text"} for name in ("id", "prompt", "completion")}
    document = {"name": DATASET, "path": str(copy), "purposes": ["any"], "schema": fields}
    declaration.write_text(yaml.safe_dump(document))
    federation.call_site(site, "datasets", "withdraw", DATASET)
    registered = federation.call_site(site, "datasets", "register", str(declaration))
    assert (registered["exit"], registered["records"]) == (0, RECORD_COUNTS[site])
    return copy


def decisions(federation: Federation, run_id: str) -> dict[str, str]:
    rows = federation.run(run_id)["approvals"]
    assert isinstance(rows, list)
    return {str(row["site_id"]): str(row["decision"]) for row in rows}


def versions(federation: Federation, site: str) -> list[tuple[object, object]]:
    """Outcome and digest of every version of its policy that a site has recorded."""
    return [(facts["outcome"], facts["policy_sha256"]) for facts in federation.site_events(site, "policy.loaded")]


def test_policy_denies_is_mended_and_breaks_while_a_run_goes_on(make_federation: MakeFederation) -> None:
    federation = make_federation(sites=FOUR)
    client = federation.client
    narrow = change_policy(federation, CHARITE, adapters=adapters(STUDY.rank - 1))
    data = own_data(federation, KAROLINSKA)
    federation.start()
    run_id = federation.start_run(STUDY)
    federation.wait_until("round 0 is open", lambda: federation.round(run_id, 0))
    client.post(f"/api/v1/runs/{run_id}:pause")

    # One hospital permits no adapter of this rank: its steward is told so, and the others go on without it.
    waiting = federation.wait_until(
        "the run waits at charite", lambda: federation.call_site(CHARITE, "runs", "pending")["items"]
    )
    assert isinstance(waiting, list)
    assert str(waiting[0]["denied_by"]).startswith(f"{RANK_RULE}: ")
    explained = federation.call_site(CHARITE, "policy", "explain", run_id)
    rules = {rule["rule"]: rule for rule in explained["rules"]}  # type: ignore[attr-defined]
    assert (explained["exit"], explained["is_permitted"], explained["policy_sha256"]) == (3, False, narrow)
    assert [name for name, rule in rules.items() if not rule["is_met"]] == [RANK_RULE]
    assert (rules[RANK_RULE]["value"], rules[RANK_RULE]["limit"]) == (STUDY.rank, STUDY.rank - 1)
    assert federation.call_site(CHARITE, "runs", "approve", run_id)["exit"] == 3
    denied = [facts for facts in federation.site_events(CHARITE, "policy.evaluated") if facts["outcome"] == "denied"]
    assert {(facts["rule"], facts["policy_sha256"]) for facts in denied} == {(RANK_RULE, narrow)}
    federation.wait_until("round 0 is committed", lambda: federation.counted(run_id, 0))
    assert federation.counted(run_id, 0) == {ST_MARY, UCSF, KAROLINSKA}
    assert CHARITE not in decisions(federation, run_id)

    # Its policy is widened: the agent that runs approves by it. Another's is narrowed in the middle of the run.
    wide = change_policy(federation, CHARITE, adapters=adapters(STUDY.rank))
    change_policy(federation, ST_MARY, adapters=adapters(STUDY.rank - 1))
    federation.wait_until("charite approved", lambda: decisions(federation, run_id).get(CHARITE) == "approved")
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until("round 1 is open", lambda: federation.round(run_id, 1))
    client.post(f"/api/v1/runs/{run_id}:pause")
    federation.wait_until("round 1 is committed", lambda: federation.counted(run_id, 1))
    assert federation.counted(run_id, 1) == {CHARITE, UCSF, KAROLINSKA}
    assert (federation.participation(run_id, 1, ST_MARY), federation.reason(run_id, 1, ST_MARY)) == (
        "DECLINED",
        RANK_RULE,
    )

    permitted = policy_file(federation, UCSF).read_text()
    # A file that is broken permits nothing, whatever stood in it before; one that is mended counts at once.
    broken = put_policy(policy_file(federation, UCSF), f"# {CANARY}\ntasks: [instruction-tuning\n")
    change_policy(federation, ST_MARY, adapters=adapters(STUDY.rank))
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_until("round 2 is open", lambda: federation.round(run_id, 2))
    client.post(f"/api/v1/runs/{run_id}:pause")
    federation.wait_until("round 2 is committed", lambda: federation.counted(run_id, 2))
    assert federation.counted(run_id, 2) == {ST_MARY, CHARITE, KAROLINSKA}
    assert (federation.participation(run_id, 2, UCSF), federation.reason(run_id, 2, UCSF)) == (
        "DECLINED",
        "policy-unreadable",
    )

    # A data file that is not the registered one any more is refused as the round begins.
    put_policy(policy_file(federation, UCSF), permitted)
    with data.open("a") as file:
        file.write(data.read_text().splitlines(keepends=True)[0])
    client.post(f"/api/v1/runs/{run_id}:resume")
    federation.wait_for_end(run_id)
    assert federation.counted(run_id, 3) == {ST_MARY, CHARITE, UCSF}
    assert federation.reason(run_id, 3, KAROLINSKA) == "dataset-changed"

    # Each version is in the site's log before anything rests on it; no word of a policy is at the coordinator.
    assert versions(federation, CHARITE) == [("loaded", narrow), ("loaded", wide)]
    assert ("unreadable", broken) in versions(federation, UCSF)
    counted = [sum(RECORD_COUNTS[site] for site in federation.counted(run_id, index)) for index in (0, 1, 2)]
    assert [row[0] for row in sums_of_rounds(federation, run_id)[:3]] == counted
    events = verified_audit(federation)
    told = [event["facts"] for event in events if event["kind"] == "participation.state"]
    assert {facts["reason"] for facts in told if facts["state"] == "DECLINED"} == {RANK_RULE, "policy-unreadable"}
    for file in federation.coordinator_dir.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes()
            assert narrow.encode() not in file.read_bytes()
