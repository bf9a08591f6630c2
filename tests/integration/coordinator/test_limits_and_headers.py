# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""What every answer carries, and what becomes of whoever asks too often, over HTTPS."""

from __future__ import annotations

import socket
import ssl

import pytest

HEADERS = {
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/api/v1/ca/root", 200),
        ("GET", "/api/v1/me", 200),
        ("GET", "/api/v1/audit/export", 200),
        ("GET", "/api/v1/nothing", 404),
        ("DELETE", "/api/v1/sites", 405),
        ("POST", "/api/v1/sites", 422),
    ],
)
def test_every_answer_carries_the_headers(admin, method: str, path: str, status: int) -> None:
    answer = admin.request(method, path)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "set-cookie" not in answer.headers
    assert "server" not in answer.headers


def test_refusals_carry_the_headers_too(coordinator, admin) -> None:
    with coordinator.client(None) as client:
        assert HEADERS.items() <= dict(client.get("/api/v1/me").headers).items()
    too_large = admin.post("/api/v1/sites", content=b" " * (2 << 20))
    assert too_large.status_code == 413
    assert HEADERS.items() <= dict(too_large.headers).items()


def test_who_asks_too_often_is_told_when_to_come_again(new_coordinator) -> None:
    new_coordinator.init()
    new_coordinator.environment.update(
        WARDROUND_RATE_LIMITS__REQUESTS_PER_MINUTE="1",
        WARDROUND_RATE_LIMITS__REQUESTS_BURST="8",
        WARDROUND_RATE_LIMITS__FAILURES_PER_MINUTE="1",
        WARDROUND_RATE_LIMITS__FAILURES_BURST="3",
    )
    new_coordinator.start()
    token = new_coordinator.admin_token()
    with new_coordinator.client(token) as admin, new_coordinator.client("wrt_" + "A" * 43) as guesser:
        other = admin.post("/api/v1/tokens", json={"label": "another"}).json()["token"]
        # One request is one, also where the route looks twice at who asks.
        headers = {"Idempotency-Key": "once"}
        assert admin.post("/api/v1/users", json={"name": "ada"}, headers=headers).status_code == 201
        assert [guesser.get("/api/v1/me").status_code for _ in range(3)] == [401] * 3
        refused = guesser.get("/api/v1/me")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate-limited")
        assert 0 < int(refused.headers["retry-after"]) <= 60
        # A header that names another address changes nothing, and a token that was good lately is let pass.
        spoofed = guesser.get("/api/v1/me", headers={"X-Forwarded-For": "203.0.113.9"})
        assert spoofed.status_code == 429
        assert [admin.get("/api/v1/me").status_code for _ in range(7)] == [200] * 6 + [429]
        assert admin.get("/healthz").status_code == 200
    with new_coordinator.client(other) as unseen:
        assert unseen.get("/api/v1/me").status_code == 429, "the address has failed, and this token was never seen"


def test_no_cipher_without_authentication_of_its_content_is_agreed_on(coordinator) -> None:
    # Of TLS 1.2, what every client of today has; a block cipher with a MAC beside it is what downgrades ask for.
    assert handshake(coordinator, "ECDHE-ECDSA-AES128-GCM-SHA256") == "ECDHE-ECDSA-AES128-GCM-SHA256"
    with pytest.raises(ssl.SSLError):
        handshake(coordinator, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")


def handshake(coordinator, ciphers: str) -> str:
    """The cipher that the REST listener agrees on with a client of TLS 1.2 that has only these."""
    address = coordinator.addresses()["rest"]
    host, port = address.rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(ciphers)
    with (
        socket.create_connection((host, int(port)), timeout=20) as connection,
        context.wrap_socket(connection) as secured,
    ):
        agreed = secured.cipher()
        assert agreed is not None
        return agreed[0]
