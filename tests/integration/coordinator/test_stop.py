# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""A coordinator that is told to stop while somebody waits for an answer."""

from __future__ import annotations

import json
import signal
import socket
import ssl


def test_request_that_a_stop_overtakes_is_told_to_come_again(new_coordinator) -> None:
    new_coordinator.init()
    new_coordinator.start()
    host, port = new_coordinator.addresses()["rest"].rsplit(":", 1)
    trusted = ssl.create_default_context(cafile=str(new_coordinator.directory / "root.pem"))
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        trusted.wrap_socket(plain, server_hostname=host) as link,
        link.makefile("rb") as answers,
    ):
        link.sendall(
            b"POST /api/v1/users HTTP/1.1\r\nHost: coordinator\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
        )
        # It waits for a body now, which never comes: the request is under way, and will be when the server stops.
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        new_coordinator.process.send_signal(signal.SIGTERM)
        assert answers.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
        headers = dict(line.decode().lower().strip().split(": ", 1) for line in iter(answers.readline, b"\r\n"))
        document = json.loads(answers.read(int(headers["content-length"])))
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["retry-after"]) > 0
    assert (document["status"], document["code"]) == (503, "stopping")
    assert new_coordinator.process.wait(timeout=60) == 0
    log = (new_coordinator.directory / "serve.log").read_text()
    assert "Traceback" not in log
    assert "Exception in ASGI" not in log
