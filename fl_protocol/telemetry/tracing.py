"""Traces by OTLP over HTTP, where a setting says where to; else nothing is made, and nothing leaves.

A shell over the OpenTelemetry SDK, which is loaded only where tracing is on (the extra ``tracing``). Spans have the
names and attributes of ``span_names`` and no others: no text of an error, no figure of a trainer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.span_names import SPAN_ATTRIBUTES, SpanName
from fl_protocol.telemetry.trace_ids import TraceIds

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext, Tracer
    from opentelemetry.util.types import AttributeValue

Attributes = Mapping[str, str | int]
TRACEPARENT = "traceparent"
"""The name of the header, and of gRPC's metadata."""
_SCOPE = "wardround"
_FLUSH_MS = 3000


class TracingUnavailableError(WardroundError):
    """Tracing is set, and this installation cannot do it."""

    code = "tracing-unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """Where spans go: the whole address of an OTLP collector's traces, and the certificates behind its own."""

    endpoint: str
    service: str
    version: str
    ca_file: Path | None = None


@dataclass(slots=True)
class OpenSpan:
    """A span that has begun; attributes may be added until its block ends."""

    attributes: dict[str, str | int] = field(default_factory=dict)

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute of the list."""
        self.attributes[name] = value


class Tracing:
    """Tells spans, or does nothing. Safe in many threads and tasks."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Take the SDK's provider; without one nothing is told."""
        self._provider = provider
        self._tracer: Tracer | None = None if provider is None else provider.get_tracer(_SCOPE)

    @property
    def is_on(self) -> bool:
        """Whether spans are told."""
        return self._tracer is not None

    @contextmanager
    def span(
        self, name: SpanName, attributes: Attributes, *, parent: TraceIds | None = None, about: TraceIds | None = None
    ) -> Iterator[OpenSpan]:
        """A span as long as the block; what is begun inside it, in the same task or thread, hangs below it.

        Args:
            name: what it is about.
            attributes: of the list.
            parent: below which it hangs; else below the one that is open, or in a trace of its own.
            about: a trace that it is linked to.
        """
        opened = OpenSpan(dict(attributes))
        if self._tracer is None:
            yield opened
            return
        from opentelemetry import trace

        span = self._tracer.start_span(
            name.value, context=_context(parent), links=[] if about is None else [trace.Link(_span_context(about))]
        )
        try:
            # An error's words are for the log: here only that there was one.
            with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
                yield opened
        except BaseException:
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.set_attributes(_checked(opened.attributes))
            span.end()

    def tell(
        self,
        name: SpanName,
        attributes: Attributes,
        *,
        parent: TraceIds | None,
        began: datetime,
        ended: datetime,
        own: TraceIds | None = None,
        about: TraceIds | None = None,
    ) -> None:
        """Tell a span that is over; ``own`` gives it these identifiers (of a round's first span)."""
        if self._tracer is None:
            return
        from opentelemetry import trace

        from fl_protocol.telemetry.given_ids import given

        with given(own):
            span = self._tracer.start_span(
                name.value,
                context=_context(parent, is_root=parent is None),
                start_time=_ns(began),
                links=[] if about is None else [trace.Link(_span_context(about))],
            )
        span.set_attributes(_checked(attributes))
        span.end(_ns(ended))

    def close(self) -> None:
        """Send what is left, for three seconds at most."""
        if self._provider is not None:
            self._provider.force_flush(_FLUSH_MS)
            self._provider.shutdown()


NO_TRACING = Tracing()
"""What is used where nothing is set."""
_opened: list[str] = []
"""Where this process tells spans; log lines name their traces then."""


def open_tracing(options: TracingOptions) -> Tracing:
    """Tell spans to the collector from now on. What it does not take is dropped: nothing here waits for it.

    Raises:
        TracingUnavailableError: the OpenTelemetry SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError as error:
        message = "tracing.endpoint is set, and OpenTelemetry is not installed: pip install 'wardround[tracing]'"
        raise TracingUnavailableError(message) from error
    from fl_protocol.telemetry.given_ids import GivenIds

    provider = TracerProvider(
        # Not Resource.create, which adds what the environment and the machine say of themselves.
        resource=Resource({"service.name": options.service, "service.version": options.version}),
        sampler=ALWAYS_ON,
        id_generator=GivenIds(),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(
        endpoint=options.endpoint,
        certificate_file=None if options.ca_file is None else str(options.ca_file),
        timeout=_FLUSH_MS / 1000,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _opened.append(options.endpoint)
    return Tracing(provider)


def is_tracing() -> bool:
    """Whether this process tells spans."""
    return bool(_opened)


def current_ids() -> TraceIds | None:
    """The span that is open in this task or thread; None where there is none, and where tracing is off."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    return TraceIds(trace_id=context.trace_id, span_id=context.span_id) if context.is_valid else None


def _context(parent: TraceIds | None, *, is_root: bool = False) -> Context | None:
    """The context to begin a span in: below ``parent``, below nothing, or (None) below what is open."""
    from opentelemetry import context, trace

    if parent is not None:
        return trace.set_span_in_context(trace.NonRecordingSpan(_span_context(parent)), context.Context())
    return context.Context() if is_root else None


def _span_context(ids: TraceIds) -> SpanContext:
    from opentelemetry import trace

    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(ids.trace_id, ids.span_id, is_remote=True, trace_flags=flags)


def _checked(attributes: Attributes) -> Mapping[str, AttributeValue]:
    unknown = set(attributes) - set(SPAN_ATTRIBUTES)
    assert not unknown, f"say in span_names what these hold: {sorted(unknown)}"
    return dict(attributes)


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
