"""Any order of events leads a round to an end, or it says what it waits for; and frozen sets never change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds import events, exchange_machine, round_machine
from coordinator.rounds.cohort import gone_sites
from coordinator.rounds.effects import ComputeSum, DropSites, OpenExchange
from coordinator.rounds.exchange_machine import ExchangeState, ExchangeStatus, step_exchange
from coordinator.rounds.participation_machine import ParticipationState as P
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.round_machine import MAX_EXCHANGE_ATTEMPTS, RoundState, RoundStatus, step_round
from fl_protocol.ids import SiteId
from fl_protocol.spec.secagg_params import SecAggParams

START = datetime(2026, 1, 1, tzinfo=UTC)
_MESSAGES = {
    ExchangeState.ADVERTISING: events.KeysAdvertised,
    ExchangeState.SHARING: events.SharesDealt,
    ExchangeState.COLLECTING: events.UploadCompleted,
    ExchangeState.CONFIRMING: events.SurvivorsConfirmed,
    ExchangeState.REVEALING: events.SharesRevealed,
}
_SETS = ("u1", "u2", "u3", "u4", "u5")


class Model:
    """What the driver does with the two machines, without a database."""

    def __init__(self, n_sites: int, quorum: int) -> None:
        self.sites = tuple(SiteId(f"s{i:02}") for i in range(n_sites))
        self.rules = RoundRules(
            quorum=quorum,
            params=SecAggParams(),
            round_deadline=timedelta(seconds=100),
            phase_deadline=timedelta(seconds=10),
        )
        self.now = START
        self.parts = dict.fromkeys(self.sites, P.TRAINING)
        planned = RoundStatus(
            state=RoundState.PLANNED, participations=self.parts, deadline_at=START + self.rules.round_deadline
        )
        self.round = step_round(planned, events.RoundOpened(), rules=self.rules, now=START).status
        self.exchange: ExchangeStatus | None = None
        self.n_exchanges = 0
        self.n_sums = 0

    def to_round(self, event: events.RoundEvent) -> None:
        if self.round.state.is_final:
            return
        step = step_round(replace(self.round, participations=dict(self.parts)), event, rules=self.rules, now=self.now)
        self.round = step.status
        for effect in step.effects:
            if isinstance(effect, DropSites):
                self.drop(effect.sites)
            elif isinstance(effect, OpenExchange):
                self.n_exchanges += 1
                assert len(effect.invited) >= self.rules.min_ready
                self.exchange = ExchangeStatus(
                    state=ExchangeState.ADVERTISING,
                    invited=effect.invited,
                    arrived=frozenset(),
                    gone=frozenset(),
                    phase_deadline_at=self.now + self.rules.phase_deadline,
                )

    def to_exchange(self, event: events.ExchangeEvent) -> None:
        before = self.exchange
        if before is None or self.round.state is not RoundState.EXCHANGING or before.state.is_final:
            return
        before = replace(before, gone=gone_sites(self.parts))
        step = step_exchange(before, event, rules=self.rules, now=self.now)
        for name in _SETS:
            if getattr(before, name) is not None:
                assert getattr(step.status, name) == getattr(before, name)
        self.exchange = step.status
        for effect in step.effects:
            if isinstance(effect, DropSites):
                self.drop(effect.sites)
            if isinstance(effect, ComputeSum):
                self.n_sums += 1
        if step.status.state is ExchangeState.SUMMED:
            self.to_round(events.ExchangeSummed())
        elif step.status.state is ExchangeState.FAILED and not before.state.is_final:
            assert step.status.reason is not None
            may = before.state is not ExchangeState.REVEALING
            self.to_round(events.ExchangeFailed(reason=step.status.reason, may_be_repeated=may))

    def drop(self, sites: tuple[SiteId, ...]) -> None:
        for site in sites:
            self.parts[site] = P.DROPPED

    def act(self, choice: int, who: int) -> None:
        site = self.sites[who % len(self.sites)]
        state = self.parts[site]
        exchange = self.exchange
        if choice <= 4:
            if self.round.state is RoundState.TRAINING and state is P.TRAINING:
                self.parts[site] = P.READY
                self.to_round(events.SiteReported(site_id=site))
            elif exchange is not None and site in exchange.awaited and state.can_exchange:
                self.to_exchange(_MESSAGES[exchange.state](site_id=site))
            elif exchange is not None and exchange.u5 is not None:
                self.to_exchange(events.SumComputed())
            elif self.round.state is RoundState.FOLDING:
                self.to_round(events.RoundFolded())
        elif choice == 5 and not state.is_gone:
            self.parts[site] = P.DECLINED
            self.to_exchange(events.SiteReported(site_id=site))
            self.to_round(events.SiteReported(site_id=site))
        elif choice == 6:
            self.now += timedelta(seconds=7)
        elif choice == 7 and exchange is not None and exchange.state is ExchangeState.REVEALING and exchange.u5 is None:
            self.parts[site] = P.REJECTED
            if site in exchange.expected:
                self.to_exchange(events.LiarNamed(site_id=site))
        elif choice == 8 and exchange is not None and exchange.state is ExchangeState.COLLECTING:
            self.parts[site] = P.REJECTED
            self.to_exchange(events.DealerBlamed(dealer=site))
        self.to_exchange(events.TimePassed())
        self.to_round(events.TimePassed())

    def check(self) -> None:
        if self.round.state is RoundState.TRAINING:
            assert any(state.is_at_work for state in self.parts.values())
            assert "waits for" in round_machine.waits_for(replace(self.round, participations=self.parts))
        if self.round.state is RoundState.EXCHANGING:
            exchange = self.exchange
            assert exchange is not None
            assert not exchange.state.is_final
            assert exchange.u5 is not None or replace(exchange, gone=gone_sites(self.parts)).awaited
            assert exchange_machine.waits_for(exchange)
        frozen = [set(getattr(self.exchange, name)) for name in _SETS if self.exchange and getattr(self.exchange, name)]
        assert all(later <= earlier for earlier, later in pairwise(frozen))
        assert self.n_exchanges <= MAX_EXCHANGE_ATTEMPTS
        assert self.n_sums <= 1


@settings(max_examples=150, deadline=None)
@given(
    n_sites=st.integers(3, 8),
    extra_quorum=st.integers(0, 3),
    actions=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 7)), max_size=120),
)
def test_round_under_any_events_ends_or_says_what_it_waits_for(
    n_sites: int, extra_quorum: int, actions: list[tuple[int, int]]
) -> None:
    model = Model(n_sites, min(3 + extra_quorum, n_sites))
    for choice, who in actions:
        model.act(choice, who)
        model.check()
    # Without any further word from a site, time and the driver's own effects bring every round to its end.
    for _ in range(60):
        model.act(6, 0)
        if model.exchange is not None and model.exchange.u5 is not None:
            model.to_exchange(events.SumComputed())
        if model.round.state is RoundState.FOLDING:
            model.to_round(events.RoundFolded())
    assert model.round.state.is_final
    if model.round.state is RoundState.COMMITTED:
        assert model.exchange is not None
        assert len(model.exchange.u3 or ()) >= model.rules.quorum
    else:
        assert model.round.reason is not None
