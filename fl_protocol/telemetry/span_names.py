"""Every span that is told where tracing is on, and every attribute that one may have. Nothing computed from data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class SpanName(StrEnum):
    """What a span is about."""

    ROUND = "round"
    PHASE = "round.phase"
    EFFECT = "round.effect"
    REST = "rest.request"
    CALL = "site.call"
    TRAIN = "site.train"
    TRAINER = "trainer.stage"
    STEP = "site.step"


SPAN_ATTRIBUTES: Mapping[str, str] = {
    "run_id": "the run",
    "round_index": "the round, from 0",
    "round_attempt": "the attempt at it, from 0",
    "exchange_index": "the exchange, from 0",
    "exchange_attempt": "the attempt at it, from 0",
    "site_id": "the site",
    "job_id": "the job's folder at a site",
    "request_id": "the request or call, as in the log",
    "phase": "a phase of the round or its exchange",
    "effect": "the kind of an effect",
    "step": "a step of the secure sum",
    "stage": "what the trainer did: loading, evaluating or training",
    "method": "HTTP's method, or the name of a call",
    "route": "the path as the OpenAPI document has it",
    "transport": "grpc or http1",
    "status": "the HTTP or gRPC status",
    "outcome": "what came of it, one of a closed list",
}
"""The same keys as in log lines, where both have them."""
