"""An OTLP collector: an HTTP server that keeps what is posted to it, and decodes it by OpenTelemetry's own schema."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedSpan:
    """One span as it arrived."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    attributes: Mapping[str, str | int | float | bool]
    resource: Mapping[str, str | int | float | bool]
    links: tuple[int, ...]
    seconds: float
    is_error: bool


@dataclass(slots=True)
class Collector:
    """What was posted, body by body."""

    endpoint: str = ""
    bodies: list[bytes] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Collector]:
        """Listen on a free port of this machine as long as the block runs."""
        collector = cls()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the library's word
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        collector.endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        try:
            yield collector
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def spans(self) -> list[CollectedSpan]:
        """Every span of every body."""
        return [span for body in tuple(self.bodies) for span in _spans_of(body)]


def _spans_of(body: bytes) -> Iterator[CollectedSpan]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                yield CollectedSpan(
                    name=span.name,
                    trace_id=int.from_bytes(span.trace_id, "big"),
                    span_id=int.from_bytes(span.span_id, "big"),
                    parent_id=int.from_bytes(span.parent_span_id, "big"),
                    attributes=_values(span.attributes),
                    resource=resource,
                    links=tuple(int.from_bytes(link.trace_id, "big") for link in span.links),
                    seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    is_error=span.status.code == Status.STATUS_CODE_ERROR,
                )


def _values(pairs: list[KeyValue]) -> dict[str, str | int | float | bool]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}
