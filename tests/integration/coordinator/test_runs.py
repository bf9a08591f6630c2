# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc, run_pb2, run_pb2_grpc

CALL_S = 20.0


def stamp(offset_s: float = 0.0) -> str:
    return (datetime.now(UTC) + timedelta(seconds=offset_s)).isoformat()


def await_state(admin, run_id: str, state: str) -> dict[str, object]:
    deadline = time.monotonic() + CALL_S
    while time.monotonic() < deadline:
        run = admin.get(f"/api/v1/runs/{run_id}").json()
        if run["state"] == state:
            return run
        time.sleep(0.05)
    raise AssertionError(f"the run did not become {state}: {run}")


@pytest.fixture
def cohort(enrolled, request):
    prefix = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return [enrolled(f"{prefix}-{letter}") for letter in "abc"]


@pytest.fixture
def run(lead, cohort, run_document, put_adapter):
    document = run_document(*(site.name for site in cohort))
    answer = lead.post("/api/v1/runs", json={"run_spec": document, **put_adapter})
    assert answer.status_code == 201, answer.text
    return answer.json()


def submit(site, run, statement, tools) -> None:
    with site.channel() as channel:
        run_pb2_grpc.RunServiceStub(channel).SubmitApproval(
            run_pb2.SubmitApprovalRequest(run_id=run["run_id"], statement=tools.proto(statement)), timeout=CALL_S
        )


def test_run_is_resolved_and_frozen_when_it_is_created(admin, run, cohort, tools) -> None:
    assert run["state"] == "DRAFT"
    assert run["rounds_total"] == 2
    pins = {site["name"]: site["signing_key_sha256"] for site in run["run_spec"]["cohort"]["sites"]}
    assert pins == {site.name: tools.fingerprint(site.keys.signer.spki_der) for site in cohort}
    assert admin.get(f"/api/v1/runs/{run['run_id']}").json()["run_spec_sha256"] == run["run_spec_sha256"]
    with cohort[0].channel() as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        assert stub.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S).runs == []
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetRun(run_pb2.GetRunRequest(run_id=run["run_id"]), timeout=CALL_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_run_becomes_active_once_a_quorum_has_approved_and_its_round_is_assigned(
    admin, run, cohort, tools, enrolled
) -> None:
    run_id = run["run_id"]
    assert admin.post(f"/api/v1/runs/{run_id}:start").json()["state"] == "AWAITING_SITES"
    outsider = enrolled(f"outsider-{run_id[4:12]}")
    with outsider.channel() as channel:
        assert run_pb2_grpc.RunServiceStub(channel).ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S).runs == []
    for site in cohort:
        with site.channel() as channel:
            stub = run_pb2_grpc.RunServiceStub(channel)
            pending = stub.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_S).runs
            assert [one.run_id for one in pending] == [run_id]
            detail = stub.GetRun(run_pb2.GetRunRequest(run_id=run_id), timeout=CALL_S)
            assert hashlib.sha256(detail.run_spec_json).hexdigest() == run["run_spec_sha256"]
            assert json.loads(detail.run_spec_json) == run["run_spec"]
        submit(site, run, site.statement(run, "approved", at=stamp()), tools)
    shown = await_state(admin, run_id, "ACTIVE")
    assert [one["decision"] for one in shown["approvals"]] == ["approved"] * 3
    with cohort[0].channel() as channel:
        roster = run_pb2_grpc.RunServiceStub(channel).GetRoster(run_pb2.GetRosterRequest(run_id=run_id), timeout=CALL_S)
        assert [(one.site_id, one.approved, one.revoked) for one in roster.sites] == [
            (site.name, True, False) for site in cohort
        ]
        answer = round_pb2_grpc.RoundServiceStub(channel).PollAssignment(
            round_pb2.PollAssignmentRequest(wait_s=10.0), timeout=CALL_S
        )
    assert answer.WhichOneof("instruction") == "train"
    rounds = admin.get(f"/api/v1/runs/{run_id}/rounds").json()["items"]
    assert [(one["round_index"], one["kind"], one["state"]) for one in rounds] == [(0, "train", "TRAINING")]
    assert {one["state"] for one in rounds[0]["participations"]} == {"INVITED"}
    assert admin.get(f"/api/v1/runs/{run_id}/metrics").json()["rounds"] == []
    kinds = []
    with admin.stream("GET", f"/api/v1/runs/{run_id}/events") as stream:
        for line in stream.iter_lines():
            kinds += [line.removeprefix("event: ")] if line.startswith("event: ") else []
            if "run" in kinds and "round" in kinds:
                break
    assert admin.post(f"/api/v1/runs/{run_id}:cancel", json={"reason": "a test"}).json()["state"] == "CANCELLED"
    conflict = admin.post(f"/api/v1/runs/{run_id}:resume")
    assert (conflict.status_code, conflict.json()["code"]) == (409, "state-conflict")


def test_whoever_created_a_run_does_not_start_it_and_both_names_are_recorded(admin, lead, make_user, run) -> None:
    run_id, creator = run["run_id"], run["created_by"]
    refused = lead.post(f"/api/v1/runs/{run_id}:start")
    assert (refused.status_code, refused.json()["code"]) == (403, "four-eyes")
    assert admin.get(f"/api/v1/runs/{run_id}").json()["state"] == "DRAFT"
    # A second token is not a second person.
    own = lead.post("/api/v1/tokens", json={"label": "another", "lifetime_s": 60}).json()["token"]
    again = lead.post(f"/api/v1/runs/{run_id}:start", headers={"Authorization": f"Bearer {own}"})
    assert (again.status_code, again.json()["code"]) == (403, "four-eyes")
    other = make_user(f"other {run_id[4:12]}", "study-lead")
    assert other.post(f"/api/v1/runs/{run_id}:start").json()["state"] == "AWAITING_SITES"
    starter = f"user:other {run_id[4:12]}"
    recorded = {}
    for kind in ("call.refused", "run.started"):
        events = admin.get("/api/v1/audit/events", params={"kind": kind, "limit": 500}).json()["items"]
        recorded[kind] = [event for event in events if event["facts"].get("run_id") == run_id]
    assert [(event["actor"], event["facts"]["created_by"]) for event in recorded["run.started"]] == [(starter, creator)]
    assert [(event["actor"], event["facts"]["created_by"]) for event in recorded["call.refused"]] == [
        (creator, creator)
    ] * 2
    assert {event["facts"]["code"] for event in recorded["call.refused"]} == {"four-eyes"}


def test_event_stream_of_an_ended_run_ends_with_its_state(admin, run) -> None:
    admin.post(f"/api/v1/runs/{run['run_id']}:cancel").raise_for_status()
    with admin.stream("GET", f"/api/v1/runs/{run['run_id']}/events") as stream:
        text = "".join(stream.iter_text())
    assert text.endswith('event: end\ndata: {"state":"CANCELLED"}\n\n')
    missing = admin.get(f"/api/v1/runs/run-{'a' * 26}/events")
    assert (missing.status_code, missing.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize("fault", ["signature", "other-run", "other-spec", "future", "not-canonical"])
def test_statement_that_does_not_hold_is_refused(admin, run, cohort, tools, fault) -> None:
    admin.post(f"/api/v1/runs/{run['run_id']}:start").raise_for_status()
    site = cohort[0]
    statement = site.statement(run, "approved", at=stamp(86400.0 if fault == "future" else 0.0))
    match fault:
        case "signature":
            statement = cohort[1].statement(run, "approved", at=stamp())
        case "other-run":
            statement = site.statement(run, "approved", at=stamp(), run_id="run-" + "b" * 26)
        case "other-spec":
            statement = site.statement({**run, "run_spec_sha256": "0" * 64}, "approved", at=stamp())
        case "not-canonical":
            statement = type(statement)(body=statement.body + b" ", signature=statement.signature)
    with pytest.raises(grpc.RpcError) as caught:
        submit(site, run, statement, tools)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert tools.refusal_of(caught.value).code == "statement-invalid"
    assert admin.get(f"/api/v1/runs/{run['run_id']}").json()["approvals"] == []


def test_site_may_change_its_mind_and_an_older_statement_does_not_return(admin, run, cohort, tools) -> None:
    admin.post(f"/api/v1/runs/{run['run_id']}:start").raise_for_status()
    site = cohort[0]
    yes = site.statement(run, "approved", at=stamp(-10.0))
    withdrawn = site.statement(run, "withdrawn", at=stamp())
    submit(site, run, yes, tools)
    submit(site, run, yes, tools)
    with site.channel() as channel:
        stub = run_pb2_grpc.RunServiceStub(channel)
        request = run_pb2.WithdrawRequest(run_id=run["run_id"], statement=tools.proto(withdrawn))
        stub.Withdraw(request, timeout=CALL_S)
        with pytest.raises(grpc.RpcError) as caught:
            submit(site, run, yes, tools)
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
        wrong = run_pb2.WithdrawRequest(
            run_id=run["run_id"], statement=tools.proto(site.statement(run, "approved", at=stamp(1.0)))
        )
        with pytest.raises(grpc.RpcError) as caught:
            stub.Withdraw(wrong, timeout=CALL_S)
        assert tools.refusal_of(caught.value).code == "statement-invalid"
    assert [one["decision"] for one in admin.get(f"/api/v1/runs/{run['run_id']}").json()["approvals"]] == ["withdrawn"]


@pytest.mark.parametrize(
    ("taken", "code"), [("token", "token-unknown"), ("role", "role-insufficient")], ids=["token", "role"]
)
def test_stream_of_a_reader_whose_access_is_taken_is_ended_with_the_reason(admin, make_user, run, taken, code) -> None:
    name = f"reader-without-{taken}"
    reader = make_user(name, "auditor")
    with reader.stream("GET", f"/api/v1/runs/{run['run_id']}/events", timeout=CALL_S) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event: "), "the present state comes first"
        if taken == "token":
            mine = reader.get("/api/v1/tokens").json()["items"]
            admin.post(f"/api/v1/tokens/{mine[0]['token_id']}:revoke").raise_for_status()
        else:
            admin.post(f"/api/v1/users/{name}:revoke", json={"role": "auditor"}).raise_for_status()
        rest = list(lines)
    assert rest[-3:] == ["event: refused", f'data: {{"code": "{code}"}}', ""]
