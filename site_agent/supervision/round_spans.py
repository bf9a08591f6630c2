"""This site's spans of a round, where its tracing is on: below the round's own, which every party finds by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.telemetry.span_names import SpanName
from fl_protocol.telemetry.trace_ids import TraceIds, round_trace
from fl_protocol.telemetry.tracing import OpenSpan
from site_agent.session.events import Step
from site_agent.supervision.seams import SiteSeams


def round_trace_of(context: RoundContext | ExchangeContext) -> TraceIds:
    """The trace of this attempt at a round."""
    return round_trace(context.run_id, context.round_index, context.round_attempt)


def round_attributes(context: RoundContext | ExchangeContext, site_id: SiteId) -> dict[str, str | int]:
    """What a span of this site says of the round."""
    return {
        "run_id": context.run_id,
        "round_index": context.round_index,
        "round_attempt": context.round_attempt,
        "site_id": site_id,
    }


def training_span(seams: SiteSeams, context: RoundContext) -> AbstractContextManager[OpenSpan]:
    """Around a job of the trainer."""
    named = round_attributes(context, seams.site_id)
    return seams.tracing.span(SpanName.TRAIN, named, parent=round_trace_of(context))


def step_span(seams: SiteSeams, step: Step, context: ExchangeContext) -> AbstractContextManager[OpenSpan]:
    """Around a step of the secure sum; the calls that are made inside hang below it, at the coordinator too."""
    named = {**round_attributes(context, seams.site_id), "step": step.value}
    named |= {"exchange_index": context.exchange_index, "exchange_attempt": context.exchange_attempt}
    return seams.tracing.span(SpanName.STEP, named, parent=round_trace_of(context))
