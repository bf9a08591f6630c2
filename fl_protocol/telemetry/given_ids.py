"""Identifiers of spans: at random, but for a round's first span, whose identifiers follow from the round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from fl_protocol.telemetry.trace_ids import TraceIds

_given: ContextVar[TraceIds | None] = ContextVar("given_ids", default=None)


@contextmanager
def given(ids: TraceIds | None) -> Iterator[None]:
    """The next span that is begun inside has these identifiers."""
    token = _given.set(ids)
    try:
        yield
    finally:
        _given.reset(token)


class GivenIds(IdGenerator):
    """What the SDK asks for identifiers."""

    def __init__(self) -> None:
        """Draw where nothing is given."""
        self._random = RandomIdGenerator()

    def generate_span_id(self) -> int:
        """A span's."""
        ids = _given.get()
        return self._random.generate_span_id() if ids is None else ids.span_id

    def generate_trace_id(self) -> int:
        """A trace's."""
        ids = _given.get()
        return self._random.generate_trace_id() if ids is None else ids.trace_id
