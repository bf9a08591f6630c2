"""Rounds as people see them. Of one site there is its state, its step and its bytes; figures of data are sums only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import Exchange, Participation, Round
from coordinator.errors import NotFoundError
from coordinator.rounds.round_machine import RoundState
from coordinator.services.resources import Resources
from coordinator.services.show_runs import find_run
from fl_protocol.spec.round_spec import RoundKind

_METRICS = ("train_loss", "eval_loss", "n_records", "n_eval_records", "n_clipped", "update_norm", "metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipationView:
    """How far one site is."""

    site_id: str
    state: str
    reason: str | None
    activity: str | None
    step: int | None
    steps: int | None
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeView:
    """The latest attempt at the round's secure sum."""

    state: str
    exchange_attempt: int
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One attempt at a round."""

    round_index: int
    round_attempt: int
    kind: str
    state: str
    reason: str | None
    opened_at: datetime
    committed_at: datetime | None
    seconds: float | None
    counted_sites: tuple[str, ...]
    report: Mapping[str, object] | None
    bytes_up: int
    bytes_down: int
    participations: tuple[ParticipationView, ...]
    exchange: ExchangeView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsView:
    """What the sums of a run's committed rounds say."""

    run_id: str
    rounds: tuple[Mapping[str, object], ...]
    eval_loss_before: float | None
    eval_loss_after: float | None


def list_rounds(resources: Resources, run_id: str, *, is_every_attempt: bool = False) -> tuple[RoundView, ...]:
    """A run's rounds in order: the latest attempt of each, or all of them.

    Raises:
        NotFoundError: there is no such run.
    """

    def read(session: Session) -> tuple[RoundView, ...]:
        find_run(session, run_id)
        query = select(Round).where(Round.run_id == run_id).order_by(Round.round_index, Round.round_attempt)
        rows = list(session.scalars(query))
        if not is_every_attempt:
            rows = list({row.round_index: row for row in rows}.values())
        return _round_views(session, run_id, rows)

    return resources.db.read("list_rounds", read)


def show_round(resources: Resources, run_id: str, round_index: int, *, attempt: int | None = None) -> RoundView:
    """One attempt at a round, by default the latest.

    Raises:
        NotFoundError: there is no such run, round or attempt.
    """
    for view in reversed(list_rounds(resources, run_id, is_every_attempt=True)):
        if view.round_index == round_index and attempt in (None, view.round_attempt):
            return view
    raise NotFoundError("the run has no such round yet", run_id=run_id, round_index=round_index)


def show_metrics(resources: Resources, run_id: str) -> MetricsView:
    """The committed rounds' sums. Round r evaluates the adapter that it received, so the last one is the run's result.

    Raises:
        NotFoundError: there is no such run.
    """
    rounds = [view for view in list_rounds(resources, run_id) if view.state == RoundState.COMMITTED.value]
    first = next((view for view in rounds if view.round_index == 0), None)
    last = next((view for view in rounds if view.kind == RoundKind.EVALUATE.value), None)
    return MetricsView(
        run_id=run_id,
        rounds=tuple(_metrics_of(view) for view in rounds),
        eval_loss_before=_figure(first, "eval_loss"),
        eval_loss_after=_figure(last, "eval_loss"),
    )


def _metrics_of(view: RoundView) -> Mapping[str, object]:
    report = view.report or {}
    return {
        "round_index": view.round_index,
        "kind": view.kind,
        "state": view.state,
        "seconds": view.seconds,
        **{name: report.get(name) for name in _METRICS},
        "bytes_up": view.bytes_up,
        "bytes_down": view.bytes_down,
    }


def _figure(view: RoundView | None, name: str) -> float | None:
    value = None if view is None or view.report is None else view.report.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _round_views(session: Session, run_id: str, rows: Sequence[Round]) -> tuple[RoundView, ...]:
    # Two queries for the whole run rather than two a round: this is asked twice a second by everybody who watches.
    participations: dict[tuple[int, int], list[Participation]] = {}
    query = select(Participation).where(Participation.run_id == run_id).order_by(Participation.site_id)
    for participation in session.scalars(query):
        key = (participation.round_index, participation.round_attempt)
        participations.setdefault(key, []).append(participation)
    exchanges: dict[tuple[int, int], Exchange] = {}
    for exchange in session.scalars(
        select(Exchange).where(Exchange.run_id == run_id).order_by(Exchange.exchange_index, Exchange.exchange_attempt)
    ):
        exchanges[(exchange.round_index, exchange.round_attempt)] = exchange
    return tuple(
        _round_view(
            row,
            participations.get((row.round_index, row.round_attempt), []),
            exchanges.get((row.round_index, row.round_attempt)),
        )
        for row in rows
    )


def _round_view(row: Round, participations: Sequence[Participation], exchange: Exchange | None) -> RoundView:
    is_committed = row.state == RoundState.COMMITTED.value
    return RoundView(
        round_index=row.round_index,
        round_attempt=row.round_attempt,
        kind=row.kind,
        state=row.state,
        reason=row.reason,
        opened_at=row.opened_at,
        committed_at=row.finished_at if is_committed else None,
        seconds=None if row.finished_at is None else (row.finished_at - row.opened_at).total_seconds(),
        counted_sites=tuple(sorted(exchange.u3 or ())) if is_committed and exchange is not None else (),
        report=row.report,
        bytes_up=sum(participation.bytes_up for participation in participations),
        bytes_down=sum(participation.bytes_down for participation in participations),
        participations=tuple(_participation_view(participation) for participation in participations),
        exchange=None
        if exchange is None
        else ExchangeView(state=exchange.state, exchange_attempt=exchange.exchange_attempt, reason=exchange.reason),
    )


def _participation_view(row: Participation) -> ParticipationView:
    return ParticipationView(
        site_id=row.site_id,
        state=row.state,
        reason=row.reason,
        activity=row.activity,
        step=row.step,
        steps=row.steps,
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
    )
