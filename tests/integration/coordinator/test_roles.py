# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""Every cell of the table of roles, over HTTPS. The expected table stands here, by hand, and not in the code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest

ROLES = ("admin", "study-lead", "privacy-officer", "auditor")
ALL = "admin study-lead privacy-officer auditor"
NOBODY_RUN = "run-" + "a" * 26
BLOB = b"a blob that everybody may see"


@dataclass(frozen=True)
class Row:
    """One request: who may, and what those who may are answered."""

    method: str
    template: str
    path: str
    allowed: str
    status: int
    body: dict[str, object] | None = None
    content: bytes | None = None
    query: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.method} {self.template}{'?' if self.query else ''}"


V = "/api/v1"
RUN = f"{V}/runs/{NOBODY_RUN}"
REASON = {"reason": "a test of roles"}
BLOB_SHA256 = hashlib.sha256(BLOB).hexdigest()
TABLE = (
    Row("GET", f"{V}/me", f"{V}/me", ALL, 200),
    Row("GET", f"{V}/sites", f"{V}/sites", ALL, 200),
    Row("POST", f"{V}/sites", f"{V}/sites", "admin", 422, {"name": "Not A Name"}),
    Row("GET", f"{V}/sites/{{site_id}}", f"{V}/sites/none", ALL, 404),
    Row("POST", f"{V}/sites/{{site_id}}:suspend", f"{V}/sites/none:suspend", "admin privacy-officer", 404, REASON),
    Row("POST", f"{V}/sites/{{site_id}}:resume", f"{V}/sites/none:resume", "admin", 404),
    Row("POST", f"{V}/sites/{{site_id}}:revoke", f"{V}/sites/none:revoke", "admin", 404, REASON),
    Row("PUT", f"{V}/blobs/{{sha256}}", f"{V}/blobs/{BLOB_SHA256}", "admin study-lead", 201, content=BLOB),
    Row("GET", f"{V}/runs", f"{V}/runs", ALL, 200),
    Row(
        "POST",
        f"{V}/runs",
        f"{V}/runs",
        "admin study-lead",
        422,
        {"run_spec": {}, "layout_blob_sha256": "0" * 64, "initial_blob_sha256": "0" * 64},
    ),
    Row("GET", f"{V}/runs/{{run_id}}", RUN, ALL, 404),
    Row("POST", f"{V}/runs/{{run_id}}:start", f"{RUN}:start", "admin study-lead", 404),
    Row("POST", f"{V}/runs/{{run_id}}:pause", f"{RUN}:pause", "admin study-lead privacy-officer", 404),
    Row("POST", f"{V}/runs/{{run_id}}:resume", f"{RUN}:resume", "admin study-lead", 404),
    Row("POST", f"{V}/runs/{{run_id}}:cancel", f"{RUN}:cancel", "admin study-lead", 404),
    Row("GET", f"{V}/runs/{{run_id}}/rounds", f"{RUN}/rounds", ALL, 404),
    Row("GET", f"{V}/runs/{{run_id}}/rounds/{{round_index}}", f"{RUN}/rounds/0", ALL, 404),
    Row("GET", f"{V}/runs/{{run_id}}/metrics", f"{RUN}/metrics", ALL, 404),
    Row("GET", f"{V}/runs/{{run_id}}/events", f"{RUN}/events", ALL, 404),
    Row(
        "GET",
        f"{V}/runs/{{run_id}}/rounds/{{round_index}}/sum/record",
        f"{RUN}/rounds/0/sum/record",
        "admin privacy-officer auditor",
        404,
    ),
    Row(
        "GET",
        f"{V}/runs/{{run_id}}/rounds/{{round_index}}/sum/vector",
        f"{RUN}/rounds/0/sum/vector",
        "admin privacy-officer auditor",
        404,
    ),
    Row(
        "GET",
        f"{V}/runs/{{run_id}}/rounds/{{round_index}}/sum/uploads/{{site_id}}",
        f"{RUN}/rounds/0/sum/uploads/none",
        "admin privacy-officer auditor",
        404,
    ),
    Row("GET", f"{V}/releases", f"{V}/releases", ALL, 200),
    Row("GET", f"{V}/releases/keys", f"{V}/releases/keys", ALL, 200),
    Row("GET", f"{V}/releases/{{release_id}}", f"{V}/releases/none", ALL, 404),
    Row(
        "POST",
        f"{V}/releases/{{release_id}}:approve",
        f"{V}/releases/none:approve",
        "study-lead privacy-officer",
        404,
        {"meaning": "a test of roles", "manifest_sha256": "0" * 64},
    ),
    Row(
        "GET",
        f"{V}/releases/{{release_id}}/candidate",
        f"{V}/releases/none/candidate",
        "study-lead privacy-officer auditor",
        404,
    ),
    Row(
        "POST",
        f"{V}/releases/{{release_id}}:withdraw",
        f"{V}/releases/none:withdraw",
        "admin study-lead privacy-officer",
        404,
        REASON,
    ),
    Row("GET", f"{V}/releases/{{release_id}}/download", f"{V}/releases/none/download", ALL, 404),
    Row("GET", f"{V}/audit/events", f"{V}/audit/events", "admin privacy-officer auditor", 200),
    Row("GET", f"{V}/audit/checkpoints", f"{V}/audit/checkpoints", "admin privacy-officer auditor", 200),
    Row("GET", f"{V}/audit/export", f"{V}/audit/export", "admin privacy-officer auditor", 200),
    Row("POST", f"{V}/me/passphrase", f"{V}/me/passphrase", ALL, 422, {"passphrase": "too short"}),
    Row(
        "POST",
        f"{V}/users/{{name_or_id}}:reset-passphrase",
        f"{V}/users/none:reset-passphrase",
        "admin",
        404,
    ),
    Row("GET", "/metrics", "/metrics", "admin auditor", 200),
    Row("GET", f"{V}/users", f"{V}/users", "admin", 200),
    Row("POST", f"{V}/users", f"{V}/users", "admin", 409, {"name": "admin", "roles": []}),
    Row("POST", f"{V}/users/{{name_or_id}}:grant", f"{V}/users/none:grant", "admin", 404, {"role": "auditor"}),
    Row("POST", f"{V}/users/{{name_or_id}}:disable", f"{V}/users/none:disable", "admin", 404),
    Row("POST", f"{V}/users/{{name_or_id}}:enable", f"{V}/users/none:enable", "admin", 404),
    Row("POST", f"{V}/users/{{name_or_id}}:revoke", f"{V}/users/none:revoke", "admin", 404, {"role": "auditor"}),
    Row("GET", f"{V}/tokens", f"{V}/tokens", ALL, 200),
    Row("GET", f"{V}/tokens", f"{V}/tokens", "admin", 200, query={"scope": "all"}),
    Row("GET", f"{V}/tokens", f"{V}/tokens", "admin", 200, query={"user_id": "another"}),
    Row("POST", f"{V}/tokens", f"{V}/tokens", ALL, 201, {"label": "a test of roles", "lifetime_s": 60}),
    Row(
        "POST", f"{V}/tokens", f"{V}/tokens", "admin", 404, {"label": "", "user_id": "another"}, query={"for": "other"}
    ),
    Row("POST", f"{V}/tokens/{{token_id}}:revoke", f"{V}/tokens/none:revoke", ALL, 404),
)
OPEN = ("/healthz", "/readyz", "/version", f"{V}/ca/root")


def ask(client, row: Row):
    return client.request(row.method, row.path, json=row.body, content=row.content, params=row.query)


@pytest.fixture(scope="session")
def clients(coordinator):
    """A signed-in user of each role, and one of none."""
    # Nobody else becomes an admin: other tests of this coordinator know that it has one.
    admin = coordinator.client(coordinator.admin_token())
    made = {"admin": admin}
    for role in (*ROLES[1:], "none"):
        roles = [] if role == "none" else [role]
        user = admin.post("/api/v1/users", json={"name": f"cell {role}", "roles": roles}).json()
        answer = admin.post("/api/v1/tokens", json={"user_id": user["user_id"], "label": "cells"})
        made[role] = coordinator.client(answer.json()["token"])
    yield made
    for client in made.values():
        client.close()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
@pytest.mark.parametrize("role", [*ROLES, "none"])
def test_cell_of_the_table_is_allowed_or_refused(clients, row: Row, role: str) -> None:
    answer = ask(clients[role], row)
    if role in row.allowed.split():
        assert answer.status_code == row.status, answer.text
        return
    assert answer.status_code == 403, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["code"] == "role-insufficient"
    # Whoever has no role is refused what anybody with one may, before it is looked at whose token is asked for.
    expected = ALL if role == "none" and row.query else row.allowed
    assert set(document["needed"].split(" or ")) == set(expected.split())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_request_without_a_token_is_refused_in_every_row(coordinator, row: Row) -> None:
    with coordinator.client(None) as client:
        answer = ask(client, row)
    assert (answer.status_code, answer.json()["code"]) == (401, "token-missing")


def test_every_operation_of_the_openapi_document_has_a_row_or_is_open(coordinator) -> None:
    with coordinator.client(None) as client:
        paths = client.get("/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == {(row.method, row.template) for row in TABLE} | {("GET", path) for path in OPEN}


@pytest.mark.parametrize(
    ("scope", "permitted"),
    [
        ("runs:read", {f"GET {V}/runs", f"GET {RUN}", f"GET {RUN}/rounds", f"GET {RUN}/metrics", f"GET {RUN}/events"}),
        ("audit:*", {f"GET {V}/audit/events", f"GET {V}/audit/checkpoints", f"GET {V}/audit/export"}),
        ("runs:start", {f"POST {RUN}:start"}),
        # What the documentation tells Prometheus to come with.
        ("metrics:read", {"GET /metrics"}),
    ],
)
def test_scope_narrows_an_admins_token_in_every_row(coordinator, admin, scope: str, permitted: set[str]) -> None:
    made = admin.post("/api/v1/tokens", json={"label": "narrow", "scopes": [scope], "lifetime_s": 60})
    assert made.status_code == 201, made.text
    assert made.json()["scopes"] == [scope]
    passed = set()
    with coordinator.client(made.json()["token"]) as client:
        for row in TABLE:
            answer = ask(client, row)
            if answer.status_code == 403:
                is_admins = "admin" in row.allowed.split()
                assert answer.json()["code"] == ("scope-insufficient" if is_admins else "role-insufficient")
            else:
                assert answer.status_code == row.status
                passed.add(f"{row.method} {row.path}")
    assert passed - {f"GET {RUN}/rounds/0"} == permitted


def test_narrowed_token_makes_no_wider_one_and_lists_its_scopes(coordinator, admin) -> None:
    scopes = ["tokens:own", "me:read"]
    made = admin.post("/api/v1/tokens", json={"label": "narrow", "scopes": scopes, "lifetime_s": 60}).json()
    with coordinator.client(made["token"]) as client:
        assert client.get("/api/v1/me").json()["scopes"] == sorted(scopes)
        wider = client.post("/api/v1/tokens", json={"label": "wide", "scopes": ["users:manage"]})
        assert (wider.status_code, wider.json()["code"]) == (403, "scope-insufficient")
        same = client.post("/api/v1/tokens", json={"label": "as wide", "lifetime_s": 60})
        assert same.json()["scopes"] == sorted(scopes)
    unknown = admin.post("/api/v1/tokens", json={"label": "", "scopes": ["runs:everything"]})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "request-invalid")


def test_kept_answer_is_not_given_to_a_token_that_may_not_ask_for_it(coordinator, admin) -> None:
    headers, body = {"Idempotency-Key": "narrow-replay"}, {"name": "kept answer", "roles": []}
    assert admin.post("/api/v1/users", json=body, headers=headers).status_code == 201
    made = admin.post("/api/v1/tokens", json={"label": "narrow", "scopes": ["*:read"], "lifetime_s": 60}).json()
    with coordinator.client(made["token"]) as narrow:
        answer = narrow.post("/api/v1/users", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope-insufficient")
    assert admin.post("/api/v1/users", json=body, headers=headers).headers["idempotency-replayed"] == "true"


def test_cookie_is_never_an_authentication_and_none_is_ever_set(coordinator, clients) -> None:
    """CSRF needs credentials that a browser adds by itself: there are none here, and nothing but the header counts."""
    token = coordinator.admin_token()
    for name in ("Authorization", "session", "token", "wardround"):
        with coordinator.client(None) as client:
            client.cookies.set(name, f"Bearer {token}")
            assert client.get("/api/v1/me").status_code == 401
            client.cookies.set(name, token)
            answer = client.post("/api/v1/users", json={"name": "by cookie", "roles": []})
            assert (answer.status_code, answer.json()["code"]) == (401, "token-missing")
    for row in TABLE:
        for client in clients.values():
            assert "set-cookie" not in ask(client, row).headers
