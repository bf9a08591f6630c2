"""What `helm test` runs: every listener of the coordinator answers, under the root certificate that sites are given."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import ssl
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

GATEWAY_NAME = "gateway.wardround.internal"
TIMEOUT_S = 10.0


def split(address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def ask(address: str, path: str, context: ssl.SSLContext) -> tuple[int, bytes]:
    """One GET over HTTPS."""
    host, port = split(address)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def shake_hands(address: str, context: ssl.SSLContext, *, name: str) -> None:
    """A TLS handshake, without a certificate of our own."""
    with (
        socket.create_connection(split(address), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=name),
    ):
        pass


def unverified() -> ssl.SSLContext:
    """For what proves itself otherwise: the enrolment listener by a pin, the root by what it signs."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> int:
    """Look at all of them; print a line each, and 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rest", required=True)
    parser.add_argument("--gateway", action="append", default=[])
    parser.add_argument("--enrolment", action="append", default=[])
    parser.add_argument("--root", type=Path, help="the root certificate; asked of REST where it is not given")
    options = parser.parse_args()
    if options.root is None:
        _, root_pem = ask(options.rest, "/api/v1/ca/root", unverified())
    else:
        root_pem = options.root.read_bytes()
    trusting = ssl.create_default_context(cadata=root_pem.decode("ascii"))
    n_failed = 0

    def report(what: str, check: Callable[[], None]) -> None:
        nonlocal n_failed
        try:
            check()
        except (OSError, ValueError, http.client.HTTPException) as error:
            n_failed += 1
            sys.stdout.write(f"FAIL {what}: {type(error).__name__}: {error}\n")
        else:
            sys.stdout.write(f"ok   {what}\n")

    def is_ready() -> None:
        status, body = ask(options.rest, "/readyz", trusting)
        if status != 200:
            raise ValueError(f"{status} {json.loads(body).get('detail', '')}")

    report(f"REST {options.rest} is ready", is_ready)
    for address in options.gateway:
        report(
            f"gateway {address} shows a certificate of the root",
            partial(shake_hands, address, trusting, name=GATEWAY_NAME),
        )
    for address in options.enrolment:
        report(
            f"enrolment listener {address} speaks TLS",
            partial(shake_hands, address, unverified(), name="enrolment"),
        )
    return 1 if n_failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
