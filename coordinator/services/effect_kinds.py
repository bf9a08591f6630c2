"""The effects of the outbox, by name, and what their rows say."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from coordinator.rounds.instructions import RoundRef
from fl_protocol.ids import RunId
from fl_protocol.spec.context import ExchangeContext


class EffectKind(StrEnum):
    """What is performed after a transaction."""

    COMPUTE_SUM = "compute-sum"
    FOLD_ROUND = "fold-round"
    CREATE_RELEASE = "create-release"


def exchange_payload(context: ExchangeContext) -> dict[str, object]:
    """The row of an effect on an exchange."""
    return {
        "round": [context.round_index, context.round_attempt],
        "exchange": [context.exchange_index, context.exchange_attempt],
    }


def round_payload(ref: RoundRef) -> dict[str, object]:
    """The row of an effect on a round."""
    return {"round": [ref.round_index, ref.round_attempt]}


def context_from_payload(run_id: RunId, payload: Mapping[str, object]) -> ExchangeContext:
    """What ``exchange_payload`` wrote."""
    place, exchange = payload["round"], payload["exchange"]
    assert isinstance(place, list) and isinstance(exchange, list)  # noqa: PT018 # one fact
    return ExchangeContext(
        run_id=run_id,
        round_index=place[0],
        round_attempt=place[1],
        exchange_index=exchange[0],
        exchange_attempt=exchange[1],
    )


def ref_from_payload(run_id: RunId, payload: Mapping[str, object]) -> RoundRef:
    """What ``round_payload`` wrote."""
    place = payload["round"]
    assert isinstance(place, list)
    return RoundRef(run_id=run_id, round_index=place[0], round_attempt=place[1])
