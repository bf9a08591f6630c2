# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import base64
import hashlib
import json

import pytest

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.signing.signed import SignedBody


def assert_problem(answer, *, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["type"] == f"urn:wardround:problem:{code}"
    return document


def test_health_needs_no_token(coordinator) -> None:
    with coordinator.client(None) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {
            "status": "ready",
            "checks": {"database": True, "audit": True, "driver": True},
        }
        assert client.get("/api/v1/ca/root").content == (coordinator.directory / "root.pem").read_bytes()
        paths = client.get("/openapi.json").json()["paths"]
    for path in ("/api/v1/sites/{site_id}:revoke", "/api/v1/runs/{run_id}:start", "/api/v1/audit/export"):
        assert path in paths


@pytest.mark.parametrize(
    ("token", "code"),
    [(None, "token-missing"), ("wrt_" + "A" * 43, "token-unknown"), ("nonsense", "token-unknown")],
)
def test_request_without_a_known_token_is_a_problem(coordinator, token, code) -> None:
    with coordinator.client(token) as client:
        answer = client.get("/api/v1/me")
    assert_problem(answer, status=401, code=code)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_role_that_does_not_suffice_is_a_problem_that_names_what_is_needed(make_user) -> None:
    auditor = make_user("an auditor", "auditor")
    assert auditor.get("/api/v1/me").json()["roles"] == ["auditor"]
    assert auditor.get("/api/v1/sites").status_code == 200
    problem = assert_problem(auditor.post("/api/v1/sites", json={"name": "x"}), status=403, code="role-insufficient")
    assert problem["needed"] == "admin"
    assert problem["held"] == "auditor"
    lead = make_user("a lead", "study-lead")
    assert_problem(lead.get("/api/v1/audit/events"), status=403, code="role-insufficient")


def test_user_without_a_role_may_do_nothing(make_user) -> None:
    nobody = make_user("nobody")
    assert_problem(nobody.get("/api/v1/runs"), status=403, code="role-insufficient")


def test_token_that_was_revoked_is_unknown_at_the_next_request(coordinator, admin) -> None:
    made = admin.post("/api/v1/tokens", json={"label": "short"}).json()
    with coordinator.client(made["token"]) as client:
        assert client.get("/api/v1/me").status_code == 200
        admin.post(f"/api/v1/tokens/{made['token_id']}:revoke").raise_for_status()
        assert_problem(client.get("/api/v1/me"), status=401, code="token-unknown")
    assert made["token"].encode() not in (coordinator.directory / "coordinator.db").read_bytes()


def test_last_admin_cannot_be_taken_away(admin) -> None:
    answer = admin.post("/api/v1/users/admin:revoke", json={"role": "admin"})
    assert_problem(answer, status=409, code="state-conflict")


def test_unknown_path_wrong_method_and_malformed_body_are_problems(admin) -> None:
    assert_problem(admin.get("/api/v1/nothing"), status=404, code="not-found")
    assert_problem(admin.delete("/api/v1/sites"), status=405, code="method-not-allowed")
    problem = assert_problem(admin.post("/api/v1/sites", json={"nom": "x"}), status=422, code="request-invalid")
    assert {fault["path"] for fault in problem["faults"]} == {"name", "nom"}
    assert_problem(admin.post("/api/v1/sites", json={"name": "Not A Name"}), status=422, code="identifier-invalid")


def test_body_over_the_bound_is_a_problem(admin) -> None:
    answer = admin.post("/api/v1/sites", json={"name": "x" * (2 << 20)})
    assert_problem(answer, status=413, code="body-too-large")


def test_list_is_given_in_pages(admin, invite) -> None:
    for name in ("page-a", "page-b", "page-c"):
        invite(name)
    first = admin.get("/api/v1/sites", params={"limit": 2}).json()
    assert len(first["items"]) == 2
    names = [site["site_id"] for site in first["items"]]
    cursor = first["next_cursor"]
    while cursor is not None:
        page = admin.get("/api/v1/sites", params={"limit": 2, "cursor": cursor}).json()
        names += [site["site_id"] for site in page["items"]]
        cursor = page["next_cursor"]
    assert names == sorted(set(names))
    assert {"page-a", "page-b", "page-c"} <= set(names)
    assert_problem(admin.get("/api/v1/sites", params={"cursor": "?"}), status=422, code="request-invalid")


def test_blob_with_another_digest_is_refused_and_not_kept(admin) -> None:
    sha256 = hashlib.sha256(b"expected").hexdigest()
    answer = admin.put(f"/api/v1/blobs/{sha256}", content=b"something else")
    assert_problem(answer, status=422, code="blob-digest-mismatch")
    assert admin.put(f"/api/v1/blobs/{sha256}", content=b"expected").status_code == 201
    assert admin.put(f"/api/v1/blobs/{sha256}", content=b"expected").status_code == 201


def test_idempotency_key_gives_the_first_answer_again_and_refuses_another_body(admin) -> None:
    headers = {"Idempotency-Key": "add-dora"}
    first = admin.post("/api/v1/users", json={"name": "dora", "roles": []}, headers=headers)
    again = admin.post("/api/v1/users", json={"name": "dora", "roles": []}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = admin.post("/api/v1/users", json={"name": "dorothea", "roles": []}, headers=headers)
    assert_problem(other, status=422, code="idempotency-key-reused")
    assert_problem(admin.post("/api/v1/users", json={"name": "dora", "roles": []}), status=409, code="user-exists")


def test_idempotency_key_never_keeps_a_secret(admin, coordinator) -> None:
    headers = {"Idempotency-Key": "one-token"}
    made = admin.post("/api/v1/tokens", json={"label": "once"}, headers=headers).json()
    again = admin.post("/api/v1/tokens", json={"label": "once"}, headers=headers)
    assert_problem(again, status=409, code="secret-shown-once")
    for file in coordinator.directory.glob("coordinator.db*"):
        assert made["token"].encode() not in file.read_bytes()


def test_idempotency_key_of_a_refused_request_is_free_again(admin) -> None:
    headers = {"Idempotency-Key": "fails-first"}
    refused = admin.post("/api/v1/users/no-such-user:grant", json={"role": "auditor"}, headers=headers)
    assert_problem(refused, status=404, code="not-found")
    again = admin.post("/api/v1/users/no-such-user:grant", json={"role": "auditor"}, headers=headers)
    assert_problem(again, status=404, code="not-found")


def test_run_spec_with_several_faults_lists_them_all_with_their_paths(
    admin, enrolled, run_document, put_adapter
) -> None:
    enrolled("known-site")
    document = run_document("known-site", "never-heard-of", "nor-of-this")
    document["rounds"] = 0
    document["purpos"] = "typing error"
    document["adapter"]["rank"] = -1
    answer = admin.post("/api/v1/runs", json={"run_spec": document, **put_adapter})
    problem = assert_problem(answer, status=422, code="run-spec-invalid")
    paths = {fault["path"] for fault in problem["faults"]}
    assert {"rounds", "purpos", "adapter.rank", "cohort.sites[1]", "cohort.sites[2]"} <= paths
    named = [run for run in admin.get("/api/v1/runs").json()["items"] if "never-heard-of" in str(run["run_spec"])]
    assert named == []


def test_run_spec_whose_adapter_is_not_the_uploaded_one_names_the_digest(
    admin, enrolled, run_document, put_adapter
) -> None:
    sites = [enrolled(name).name for name in ("digest-a", "digest-b", "digest-c")]
    document = run_document(*sites)
    document["adapter"]["layout_sha256"] = "0" * 64
    blobs = {**put_adapter, "initial_blob_sha256": "1" * 64}
    answer = admin.post("/api/v1/runs", json={"run_spec": document, **blobs})
    problem = assert_problem(answer, status=422, code="run-spec-invalid")
    assert {fault["path"] for fault in problem["faults"]} == {"adapter.layout_sha256", "initial_blob_sha256"}


def test_audit_export_verifies_and_names_every_change_of_the_test(admin, invite) -> None:
    invite("audited")
    lines = [json.loads(line) for line in admin.get("/api/v1/audit/export").text.splitlines()]
    header = lines[0]
    assert header["log"] == "wardround-audit"
    rows = [
        AuditRow(seq=line["seq"], body=base64.b64decode(line["body"]), leaf_sha256=line["leaf_sha256"])
        for line in lines
        if "seq" in line
    ]
    checkpoints = [
        SignedBody(
            body=base64.b64decode(line["checkpoint"]["body"]),
            signature=base64.b64decode(line["checkpoint"]["signature"]),
        )
        for line in lines
        if "checkpoint" in line
    ]
    spki = base64.b64decode(header["signing_spki"])
    verified = verify_log(rows, checkpoints, spki, origin=header["origin"])
    assert isinstance(verified, AuditVerified)
    assert verified.n_unsigned == 0
    found = admin.get("/api/v1/audit/events", params={"kind": "site.invited", "limit": 500}).json()["items"]
    assert "audited" in {event["facts"]["site_id"] for event in found}
    assert {event["actor"] for event in found} == {"user:admin"}
    assert admin.get("/api/v1/audit/checkpoints").json()["items"][-1]["size"] == len(rows)


def test_user_who_is_disabled_is_out_with_every_token_and_in_again_as_before(admin, make_user, coordinator) -> None:
    ada = make_user("ada who leaves", "auditor")
    second = ada.post("/api/v1/tokens", json={"label": "another"}).json()["token"]
    assert admin.post("/api/v1/users/ada who leaves:disable").json()["disabled_at"] is not None
    with coordinator.client(second) as other:
        for client in (ada, other):
            assert_problem(client.get("/api/v1/me"), status=401, code="token-unknown")
        assert admin.post("/api/v1/users/ada who leaves:enable").json()["disabled_at"] is None
        assert [client.get("/api/v1/me").json()["roles"] for client in (ada, other)] == [["auditor"]] * 2
    told = admin.get("/api/v1/audit/events", params={"kind": "user.disabled"}).json()["items"]
    assert [event["actor"] for event in told if event["facts"]["name"] == "ada who leaves"] == ["user:admin"]


def test_last_admin_who_is_let_in_is_not_shut_out(admin, make_user) -> None:
    deputy = make_user("deputy", "admin")
    assert deputy.post("/api/v1/users/deputy:disable").status_code == 200, "one admin is left"
    assert_problem(admin.post("/api/v1/users/admin:disable"), status=409, code="state-conflict")
    # One who is shut out is none that is left: the role cannot be taken from the last who is let in either.
    assert_problem(admin.post("/api/v1/users/admin:revoke", json={"role": "admin"}), status=409, code="state-conflict")
