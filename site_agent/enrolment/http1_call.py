"""Enrolment's one call over HTTP/1.1, for sites whose network breaks HTTP/2. Blocking.

The connection is that of a certificate that was judged before: whatever else answers there is sent nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl

import grpc

from fl_protocol.wire import http1
from site_agent.link.connecting import WayEndsError, connect_through, secure
from site_agent.link.faults import ADVICE, PathFault
from site_agent.link.proxy import ProxyRoute

_ALPN = "http/1.1"


class CallEndedError(Exception):
    """The call has no answer: its status, what the coordinator said of it, and what to do where nobody heard it."""

    def __init__(self, status: grpc.StatusCode, detail: str, *, refusal: bytes = b"", advice: str = "") -> None:
        """Keep them."""
        super().__init__(detail)
        self.status = status
        self.refusal = refusal
        self.advice = advice


def call_over_http1(
    address: tuple[str, int],
    path: str,
    payload: bytes,
    *,
    certificate_der: bytes,
    server_name: str,
    proxy: ProxyRoute | None,
    timeout_s: float,
    max_bytes: int,
) -> bytes:
    """The answer's bytes.

    Args:
        address: host and port.
        path: ``/service/method``.
        payload: the request's bytes.
        certificate_der: the only certificate that is believed.
        server_name: the name in it.
        proxy: the way there.
        timeout_s: how long the line may be silent.
        max_bytes: the longest answer.

    Raises:
        CallEndedError: there is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=certificate_der)
    context.set_alpn_protocols([_ALPN])
    try:
        plain = connect_through(*address, proxy=proxy)
        plain.settimeout(timeout_s)
        with secure(context, plain, server_name=server_name) as secured:
            # Safety: a store may hold what issued another certificate; here it is this one or none.
            if secured.getpeercert(binary_form=True) != certificate_der:
                raise CallEndedError(
                    grpc.StatusCode.UNAVAILABLE,
                    "another certificate answers now",
                    advice=ADVICE[PathFault.TLS_INTERCEPTED],
                )
            return _post(secured, path, payload, host=server_name, timeout_s=timeout_s, max_bytes=max_bytes)
    except WayEndsError as end:
        raise CallEndedError(grpc.StatusCode.UNAVAILABLE, str(end), advice=ADVICE[end.fault]) from end
    except (OSError, http.client.HTTPException) as error:
        raise CallEndedError(grpc.StatusCode.UNAVAILABLE, f"{type(error).__name__}: {error}"[:200]) from error


def _post(secured: ssl.SSLSocket, path: str, payload: bytes, *, host: str, timeout_s: float, max_bytes: int) -> bytes:
    connection = http.client.HTTPConnection(host)
    # The connection exists already; this class would otherwise open one of its own.
    connection.sock = secured
    headers = {
        "content-type": http1.MESSAGE_TYPE,
        "connection": "close",
        http1.TIMEOUT_HEADER: str(int(timeout_s * 1000)),
    }
    connection.request("POST", path, body=payload, headers=headers)
    with contextlib.closing(connection.getresponse()) as response:
        end = http1.call_end_from_headers(
            response.headers.get(http1.STATUS_HEADER, ""), response.headers.get(http1.REFUSAL_HEADER, "")
        )
        if end is None:
            detail = f"HTTP {response.status} from something that is not the coordinator"
            raise CallEndedError(grpc.StatusCode.UNAVAILABLE, detail, advice=ADVICE[PathFault.ANSWER_FOREIGN])
        if end.status is not grpc.StatusCode.OK:
            raise CallEndedError(end.status, end.status.name, refusal=end.refusal)
        body = response.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise CallEndedError(grpc.StatusCode.UNAVAILABLE, "the answer is larger than any may be")
    return body
