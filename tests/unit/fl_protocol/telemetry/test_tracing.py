"""Spans as a real collector gets them; and that nothing is told where nothing is set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import ids_from_traceparent, round_trace, run_trace
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing, TracingOptions, current_ids, open_tracing
from tests.support.otlp_collector import Collector

RUN = "run-" + "a" * 26
AT = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector.open() as opened:
        yield opened


@pytest.fixture
def tracing(collector: Collector) -> Tracing:
    return open_tracing(TracingOptions(endpoint=collector.endpoint, service="test", version="1"))


def test_trace_of_a_round_is_the_same_for_all_and_of_no_other_round() -> None:
    assert round_trace(RUN, 3, 0) == round_trace(RUN, 3, 0)
    different = {round_trace(RUN, 3, 0), round_trace(RUN, 3, 1), round_trace(RUN, 4, 0), run_trace(RUN)}
    assert len({ids.trace_id for ids in different}) == 4


def test_traceparent_is_read_back_and_anything_else_is_nothing() -> None:
    # The example of the W3C's recommendation, section 3.2.3.
    ids = ids_from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert ids is not None
    assert (ids.trace_id, ids.span_id) == (0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7)
    assert ids_from_traceparent(ids.traceparent()) == ids
    for wrong in ("", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-xyz", "00-" + "1" * 32 + "-" + "0" * 16 + "-01"):
        assert ids_from_traceparent(wrong) is None


def test_span_inside_another_hangs_below_it_and_the_outer_below_the_round(
    tracing: Tracing, collector: Collector
) -> None:
    ids = round_trace(RUN, 0, 0)
    assert current_ids() is None
    with tracing.span(SpanName.TRAIN, {"run_id": RUN, "site_id": "st-mary"}, parent=ids) as outer:
        seen = current_ids()
        with tracing.span(SpanName.CALL, {"method": "UploadBlob"}):
            pass
        outer.set("outcome", "done")
    assert current_ids() is None
    tracing.close()
    spans = {span.name: span for span in collector.spans()}
    assert spans["site.train"].trace_id == ids.trace_id
    assert spans["site.train"].parent_id == ids.span_id
    assert spans["site.train"].attributes == {"run_id": RUN, "site_id": "st-mary", "outcome": "done"}
    assert spans["site.call"].parent_id == spans["site.train"].span_id
    assert seen is not None
    assert seen.span_id == spans["site.train"].span_id
    assert {span.resource["service.name"] for span in collector.spans()} == {"test"}
    assert {name for span in collector.spans() for name in span.resource} == {"service.name", "service.version"}


def test_first_span_of_a_round_has_the_identifiers_that_follow_from_it(tracing: Tracing, collector: Collector) -> None:
    ids = round_trace(RUN, 5, 1)
    told = {"run_id": RUN, "round_index": 5, "round_attempt": 1, "outcome": "committed"}
    ended = AT + timedelta(seconds=90)
    tracing.tell(SpanName.ROUND, told, parent=None, began=AT, ended=ended, own=ids, about=run_trace(RUN))
    tracing.close()
    (span,) = collector.spans()
    assert (span.trace_id, span.span_id, span.parent_id) == (ids.trace_id, ids.span_id, 0)
    assert span.seconds == 90.0
    assert span.links == (run_trace(RUN).trace_id,)
    assert span.attributes == told


def test_error_is_told_as_one_and_its_words_are_not(tracing: Tracing, collector: Collector) -> None:
    with pytest.raises(ValueError, match="record 17"), tracing.span(SpanName.TRAIN, {"run_id": RUN}):
        raise ValueError("record 17 of Jane Doe")
    tracing.close()
    (span,) = collector.spans()
    assert span.is_error
    assert b"Jane" not in b"".join(collector.bodies)
    assert b"record" not in b"".join(collector.bodies)


def test_attribute_that_is_not_listed_is_refused(tracing: Tracing) -> None:
    with pytest.raises(AssertionError, match="loss"), tracing.span(SpanName.TRAIN, {"loss": "2.1"}):
        pass
    tracing.close()


def test_nothing_is_told_where_nothing_is_set() -> None:
    with NO_TRACING.span(SpanName.TRAIN, {"run_id": RUN}, parent=round_trace(RUN, 0, 0)) as span:
        span.set("outcome", "done")
        assert current_ids() is None
    NO_TRACING.tell(SpanName.ROUND, {}, parent=None, began=AT, ended=AT)
    NO_TRACING.close()


def test_collector_that_is_away_holds_nobody_up() -> None:
    tracing = open_tracing(TracingOptions(endpoint="http://127.0.0.1:9/v1/traces", service="test", version="1"))
    with tracing.span(SpanName.TRAIN, {"run_id": RUN}):
        pass
    began = datetime.now(UTC)
    tracing.close()
    assert (datetime.now(UTC) - began).total_seconds() < 20.0
