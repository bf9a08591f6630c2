"""What is kept of a request says nothing of its secrets, however they are spelt."""

from __future__ import annotations

import json

import pytest

from coordinator.services.idempotency import request_digest


def digest(body: object) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request_digest(method="POST", path="/api/v1/releases/rel-a:approve", body=content)


@pytest.mark.parametrize("member", ["passphrase", "current_passphrase", "fresh_token"])
def test_digest_is_the_same_for_every_secret_and_another_for_another_request(member: str) -> None:
    bodies = [{"meaning": "fit", member: secret} for secret in ("one passphrase", "another one", 7, None)]
    assert len({digest(body) for body in bodies}) == 1
    assert digest({"meaning": "unfit", member: "one passphrase"}) != digest(bodies[0])


def test_secret_under_an_escaped_name_is_left_out_too() -> None:
    spelt = b'{"meaning": "fit", "p\\u0061ssphrase": "%s"}'
    assert digest(spelt % b"one passphrase") == digest(spelt % b"another one")


def test_body_without_a_secret_counts_to_the_byte() -> None:
    assert digest(b'{"a": 1}') != digest(b'{"a":1}')
    assert digest(b'{"passphrase"') == digest(b'{"passphrase" but no JSON')
