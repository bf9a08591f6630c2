"""The coordinator's side of an exchange, put together from stored messages.

Frozen sets never change, so what was parsed and verified once for an exchange is kept for its later messages. Nothing
here is state: after a restart, and in another process, it is computed again from the database. Every entry is named by
the sets that it was made from: a transaction that froze a set and was then rolled back leaves an entry that nobody
finds, because the set that is committed may be another one.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

from sqlalchemy.orm import Session

from coordinator.db.exchanges import context_of, messages_of
from coordinator.db.models import Exchange, Round, Run
from coordinator.errors import NotFoundError, ScrubbedError, WrongPhaseError
from coordinator.rounds.events import MessageKind
from coordinator.rounds.quorum import RoundRules
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import Algorithm
from fl_protocol.secagg.coordinator_role import (
    ExchangeOpen,
    KeyedCohort,
    SharedCohort,
    SurvivingCohort,
    freeze_cohort,
    freeze_sharers,
    freeze_survivors,
)
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, run_spec_from_bytes
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.tensors.adapter_layout import AdapterLayout

T = TypeVar("T")
_MAX_ENTRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run's frozen bytes say."""

    spec: RunSpec
    adapter: AdapterLayout
    algorithm: Algorithm
    rules: RoundRules

    def payload(self, kind: RoundKind) -> PayloadLayout:
        """The layout of what is summed in a round of this kind."""
        return self.algorithm.segments(self.spec, self.adapter, kind)


class RoleCache:
    """Keeps the last few of what was put together. Safe in many threads."""

    def __init__(self) -> None:
        self.restore: tuple[int, SignedBody | None] | None = None
        """The latest restore, once it was looked up: one is made while no process runs."""
        self._held: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def run_facts(self, run: Run) -> RunFacts:
        """The run's RunSpec, adapter layout and rules."""
        return self._once(("run", run.run_spec_sha256), lambda: _facts_of(run))

    def opened(self, session: Session, exchange: Exchange) -> ExchangeOpen:
        """The exchange before its first message."""
        return self._once(("opened", context_of(exchange)), lambda: self._open(session, exchange))

    def keyed(self, session: Session, exchange: Exchange) -> KeyedCohort:
        """U1. Raises WrongPhaseError before it is frozen."""
        sites = _frozen(exchange.u1)
        context = context_of(exchange)
        return self._once(
            ("keyed", context, tuple(sites)),
            lambda: freeze_cohort(
                self.opened(session, exchange), messages_of(session, context, kind=MessageKind.M1, sites=sites)
            ),
        )

    def shared(self, session: Session, exchange: Exchange) -> SharedCohort:
        """U2. Raises WrongPhaseError before it is frozen, ScrubbedError after its round's audit window."""
        _refuse_scrubbed(exchange)
        sites = _frozen(exchange.u2)
        context = context_of(exchange)
        return self._once(
            ("shared", context, _sets(exchange, "u1", "u2")),
            lambda: freeze_sharers(
                self.keyed(session, exchange), messages_of(session, context, kind=MessageKind.M3, sites=sites)
            ),
        )

    def surviving(self, session: Session, exchange: Exchange) -> SurvivingCohort:
        """U3. Raises WrongPhaseError before it is frozen, ScrubbedError after its round's audit window."""
        _refuse_scrubbed(exchange)
        sites = _frozen(exchange.u3)
        context = context_of(exchange)
        return self._once(
            ("surviving", context, _sets(exchange, "u1", "u2", "u3")),
            lambda: freeze_survivors(
                self.shared(session, exchange), messages_of(session, context, kind=MessageKind.M5, sites=sites)
            ),
        )

    def relay(self, name: str, exchange: Exchange, make: Callable[[], bytes]) -> bytes:
        """A message for sites that is the same each time it is asked for."""
        frozen = _sets(exchange, "u1", "u2", "u3", "u4")
        return self._once(("relay", name, context_of(exchange), frozen), make)

    def forget(self, context: ExchangeContext) -> None:
        """Drop what was put together for an exchange: the shares in it are to be nowhere any more."""
        with self._lock:
            for key in [key for key in self._held if isinstance(key, tuple) and context in key]:
                del self._held[key]

    def _open(self, session: Session, exchange: Exchange) -> ExchangeOpen:
        round_row = session.get(Round, (exchange.run_id, exchange.round_index, exchange.round_attempt))
        run = session.get(Run, exchange.run_id)
        if round_row is None or run is None:
            raise NotFoundError("the exchange's round is gone", run_id=exchange.run_id)
        facts = self.run_facts(run)
        return ExchangeOpen(
            manifest=SignedBody(body=round_row.manifest_body, signature=round_row.manifest_signature),
            exchange_index=exchange.exchange_index,
            exchange_attempt=exchange.exchange_attempt,
            layout=facts.payload(RoundKind(round_row.kind)),
            params=facts.rules.params,
            roster=facts.spec.cohort.pins,
        )

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return cast("T", self._held[key])
        made = make()
        with self._lock:
            self._held[key] = made
            while len(self._held) > _MAX_ENTRIES:
                self._held.popitem(last=False)
        return made


def _sets(exchange: Exchange, *names: str) -> tuple[tuple[str, ...] | None, ...]:
    sets: list[list[str] | None] = [getattr(exchange, name) for name in names]
    return tuple(None if sites is None else tuple(sites) for sites in sets)


def _refuse_scrubbed(exchange: Exchange) -> None:
    if exchange.scrubbed_at is not None:
        raise ScrubbedError(
            "the shares and masked uploads of this round were deleted when its audit window closed",
            run_id=exchange.run_id,
            round_index=exchange.round_index,
            scrubbed_at=exchange.scrubbed_at.isoformat(),
        )


def _frozen(sites: list[str] | None) -> list[str]:
    if sites is None:
        raise WrongPhaseError("this set of sites is not frozen yet")
    return sites


def _facts_of(run: Run) -> RunFacts:
    spec = run_spec_from_bytes(run.run_spec_json)
    secagg, cohort = spec.secure_aggregation, spec.cohort
    return RunFacts(
        spec=spec,
        adapter=AdapterLayout.from_document(json.loads(run.layout_json)),
        algorithm=ALGORITHMS[spec.aggregation.algorithm],
        rules=RoundRules(
            quorum=cohort.quorum,
            params=SecAggParams(suite=secagg.suite, min_cohort=secagg.min_cohort),
            round_deadline=timedelta(seconds=cohort.round_deadline_s),
            phase_deadline=timedelta(seconds=cohort.phase_deadline_s),
            enough=cohort.enough,
        ),
    )
