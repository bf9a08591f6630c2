from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from wardround.client.connection import Connection
from wardround.client.rest import N_ATTEMPTS, RestClient, tls_context
from wardround.errors import NotFoundError, ResponseUnreadableError, UnavailableError, UsageInvalidError

Answer = Callable[[httpx.Request], httpx.Response]


class Recorder:
    """A coordinator that answers as told, and remembers what it was asked and how long the client paused."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> RestClient:
        connection = Connection(url="https://coordinator.test", root_file=Path("unused.pem"), token="wrt_secret")
        return RestClient(connection, transport=httpx.MockTransport(self), pause=self.pauses.append)


def test_get_sends_the_token_and_returns_the_object() -> None:
    recorder = Recorder(httpx.Response(200, json={"name": "ada"}))
    with recorder.client() as client:
        assert client.get("/api/v1/me") == {"name": "ada"}
    assert recorder.requests[0].headers["Authorization"] == "Bearer wrt_secret"


def test_connection_shown_as_text_hides_the_token() -> None:
    connection = Connection(url="https://c.test", root_file=Path("root.pem"), token="wrt_secret")
    assert "wrt_secret" not in repr(connection)


def test_connection_without_tls_is_refused() -> None:
    with pytest.raises(UsageInvalidError, match="https"):
        Connection(url="http://c.test", root_file=Path("root.pem"), token="wrt_secret")


def test_pages_follow_the_cursor_to_the_end() -> None:
    recorder = Recorder(
        httpx.Response(200, json={"items": [{"n": 1}, {"n": 2}], "next_cursor": "two"}),
        httpx.Response(200, json={"items": [{"n": 3}], "next_cursor": None}),
    )
    with recorder.client() as client:
        assert [item["n"] for item in client.pages("/api/v1/runs", state="ACTIVE")] == [1, 2, 3]
    assert [request.url.params.get("cursor") for request in recorder.requests] == [None, "two"]
    assert all(request.url.params["state"] == "ACTIVE" for request in recorder.requests)


def test_pages_that_repeat_their_cursor_are_refused_rather_than_read_for_ever() -> None:
    page = {"items": [], "next_cursor": "same"}
    recorder = Recorder(*(httpx.Response(200, json=page) for _ in range(3)))
    with recorder.client() as client, pytest.raises(ResponseUnreadableError):
        list(client.pages("/api/v1/runs"))


def test_write_that_got_no_answer_is_repeated_with_the_same_key() -> None:
    recorder = Recorder(
        httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(201, json={"run_id": "run-a"})
    )
    with recorder.client() as client:
        assert client.post("/api/v1/runs", {"run_spec": {}}) == {"run_id": "run-a"}
    keys = [request.headers["Idempotency-Key"] for request in recorder.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(recorder.pauses) == 2


def test_two_writes_have_two_keys() -> None:
    recorder = Recorder(httpx.Response(200, json={}), httpx.Response(200, json={}))
    with recorder.client() as client:
        client.post("/a")
        client.post("/a")
    assert len({request.headers["Idempotency-Key"] for request in recorder.requests}) == 2


def test_request_that_is_never_answered_ends_as_unavailable_after_its_attempts() -> None:
    recorder = Recorder(*(httpx.ConnectError("refused") for _ in range(N_ATTEMPTS)))
    with recorder.client() as client, pytest.raises(UnavailableError) as caught:
        client.get("/readyz")
    assert caught.value.exit_code == 5
    assert recorder.answers == []


def test_busy_coordinator_is_asked_again_and_a_missing_thing_is_not() -> None:
    recorder = Recorder(
        httpx.Response(503, json={"code": "database-busy"}), httpx.Response(404, json={"code": "not-found"})
    )
    with recorder.client() as client, pytest.raises(NotFoundError):
        client.get("/api/v1/runs/run-x")
    assert len(recorder.requests) == 2


def test_certificate_of_another_root_is_said_to_be_so_and_not_tried_again() -> None:
    failure = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    failure.__cause__ = ssl.SSLCertVerificationError("certificate verify failed")
    recorder = Recorder(failure)
    with recorder.client() as client, pytest.raises(UsageInvalidError) as caught:
        client.get("/api/v1/me")
    assert caught.value.problem_code == "certificate-not-trusted"
    assert recorder.pauses == []


def test_blob_travels_under_its_digest() -> None:
    recorder = Recorder(httpx.Response(201, json={}))
    with recorder.client() as client:
        sha256 = client.put_blob(b"abc")
    # FIPS 180-4, the digest of "abc"
    assert sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert recorder.requests[0].url.path == f"/api/v1/blobs/{sha256}"
    assert hashlib.sha256(recorder.requests[0].read()).hexdigest() == sha256


def test_download_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> object:
        yield b"half"
        raise httpx.ReadError("gone")

    recorder = Recorder(httpx.Response(200, content=broken()))
    with recorder.client() as client, pytest.raises(UnavailableError):
        client.download("/x", tmp_path / "release.zip")
    assert list(tmp_path.iterdir()) == []


def test_answer_that_is_no_json_is_unreadable() -> None:
    recorder = Recorder(httpx.Response(200, text="<html>"))
    with recorder.client() as client, pytest.raises(ResponseUnreadableError):
        client.get("/api/v1/me")


def test_root_file_without_certificate_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text("no certificate")
    with pytest.raises(UsageInvalidError, match=r"root\.pem"):
        tls_context(tmp_path / "root.pem")


def test_refusal_that_says_when_to_come_again_is_waited_for_within_reason() -> None:
    recorder = Recorder(
        httpx.Response(429, headers={"Retry-After": "3"}, json={"code": "rate-limited", "detail": "wait"}),
        httpx.Response(429, headers={"Retry-After": "86400"}, json={"code": "rate-limited", "detail": "wait"}),
        httpx.Response(429, headers={"Retry-After": "tomorrow"}, json={"code": "rate-limited", "detail": "wait"}),
        httpx.Response(200, json={"name": "ada"}),
    )
    with recorder.client() as client:
        assert client.get("/api/v1/me") == {"name": "ada"}
    assert recorder.pauses == [3.0, 10.0, 1.2]
