"""Any order of events leads a round to an end, or it says whom it waits for; and frozen sets never change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds import events
from coordinator.rounds.attempts import next_attempt
from coordinator.rounds.cohort import gone_sites, is_present
from coordinator.rounds.effects import ComputeSum, DropSites, OpenExchange, ReturnSites
from coordinator.rounds.exchange_machine import ExchangeState, ExchangeStatus, step_exchange
from coordinator.rounds.participation_machine import DropReason
from coordinator.rounds.participation_machine import ParticipationState as P
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.round_machine import MAX_EXCHANGE_ATTEMPTS, RoundState, RoundStatus, step_round
from coordinator.rounds.run_machine import RunState
from coordinator.rounds.waiting import RoundPicture, RunPicture, SitePicture, SiteStanding, what_run_waits_for
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
_FROM_UPLOADS_ON = (ExchangeState.CONFIRMING, ExchangeState.REVEALING)


class Model:
    """What the driver does with the two machines, and what happens to sites, without a database."""

    def __init__(self, n_sites: int, quorum: int, enough: int | None = None) -> None:
        self.sites = tuple(SiteId(f"s{i:02}") for i in range(n_sites))
        self.rules = RoundRules(
            quorum=quorum,
            params=SecAggParams(),
            round_deadline=timedelta(seconds=100),
            phase_deadline=timedelta(seconds=10),
            enough=enough,
        )
        self.now = START
        self.parts = dict.fromkeys(self.sites, P.TRAINING)
        self.changed_at = dict.fromkeys(self.sites, START)
        self.seen_at = dict.fromkeys(self.sites, START)
        self.drop_reasons: dict[SiteId, DropReason] = {}
        self.lost: set[SiteId] = set()
        self.suspended: set[SiteId] = set()
        planned = RoundStatus(
            state=RoundState.PLANNED, participations=self.parts, deadline_at=START + self.rules.round_deadline
        )
        self.round = step_round(planned, events.RoundOpened(), rules=self.rules, now=START).status
        self.exchange: ExchangeStatus | None = None
        self.n_exchanges = 0
        self.n_sums = 0

    def move(self, site: SiteId, state: P, reason: DropReason | None = None) -> None:
        self.parts[site], self.changed_at[site] = state, self.now
        self.drop_reasons.pop(site, None)
        if reason is not None:
            self.drop_reasons[site] = reason

    def round_view(self) -> RoundStatus:
        silent = frozenset(site for site, reason in self.drop_reasons.items() if reason.may_return)
        here = {
            site
            for site, seen_at in self.seen_at.items()
            if site not in self.suspended
            and is_present(seen_at, now=self.now)
            and (site not in silent or seen_at > self.changed_at[site])
        }
        return replace(
            self.round,
            participations=dict(self.parts),
            changed_at=dict(self.changed_at),
            silent=silent,
            away=frozenset(self.sites) - here,
        )

    def exchange_view(self) -> ExchangeStatus | None:
        if self.exchange is None:
            return None
        return replace(self.exchange, gone=gone_sites(self.parts), away=frozenset(self.suspended))

    def to_round(self, event: events.RoundEvent) -> None:
        if self.round.state.is_final:
            return
        step = step_round(self.round_view(), event, rules=self.rules, now=self.now)
        self.round = step.status
        for effect in step.effects:
            if isinstance(effect, DropSites):
                self.drop(effect)
            elif isinstance(effect, ReturnSites):
                for site in effect.sites:
                    assert self.parts[site] is P.DROPPED
                    self.move(site, P.READY)
            elif isinstance(effect, OpenExchange):
                self.n_exchanges += 1
                assert len(effect.invited) >= self.rules.min_ready
                assert all(self.parts[site].can_exchange for site in effect.invited)
                self.exchange = ExchangeStatus(
                    state=ExchangeState.ADVERTISING,
                    invited=effect.invited,
                    arrived=frozenset(),
                    gone=frozenset(),
                    phase_deadline_at=self.now + self.rules.phase_deadline,
                )

    def to_exchange(self, event: events.ExchangeEvent) -> None:
        before = self.exchange_view()
        if before is None or self.round.state is not RoundState.EXCHANGING or before.state.is_final:
            return
        step = step_exchange(before, event, rules=self.rules, now=self.now)
        for name in _SETS:
            if getattr(before, name) is not None:
                assert getattr(step.status, name) == getattr(before, name)
        self.exchange = step.status
        for effect in step.effects:
            if isinstance(effect, DropSites):
                self.drop(effect)
            if isinstance(effect, ComputeSum):
                self.n_sums += 1
        if step.status.state is ExchangeState.SUMMED:
            self.to_round(events.ExchangeSummed())
        elif step.status.state is ExchangeState.FAILED and not before.state.is_final:
            assert step.status.reason is not None
            if before.state is ExchangeState.REVEALING:
                # Once shares were asked for, time alone fails nothing: too many are gone for good.
                liar = {event.site_id} if isinstance(event, events.LiarNamed) else set()
                can_reveal = {site for site in before.expected if site in before.arrived or site not in before.gone}
                assert len(can_reveal - liar) < self.rules.min_voices(len(before.u1 or ()))
            may = before.state is not ExchangeState.REVEALING
            self.to_round(events.ExchangeFailed(reason=step.status.reason, may_be_repeated=may))

    def drop(self, effect: DropSites) -> None:
        for site in effect.sites:
            self.move(site, P.DROPPED, effect.reason)

    def suspend(self, site: SiteId) -> None:
        """As the driver does: a site whose update is in the sum stays; any other is given up."""
        self.suspended.add(site)
        exchange = self.exchange
        is_in = exchange is not None and exchange.state in _FROM_UPLOADS_ON and site in (exchange.u3 or ())
        if not is_in and not self.parts[site].is_gone:
            self.move(site, P.DROPPED, DropReason.SITE_NOT_ACTIVE)
            self.report(site)

    def report(self, site: SiteId) -> None:
        self.to_exchange(events.SiteReported(site_id=site))
        self.to_round(events.SiteReported(site_id=site))

    def follow(self, site: SiteId) -> None:
        """An honest site does what it is asked; where it is asked nothing, the coordinator's own effect is done."""
        state, exchange = self.parts[site], self.exchange_view()
        is_open = exchange is not None and not exchange.state.is_final
        if self.round.state is RoundState.TRAINING and state is P.TRAINING:
            self.move(site, P.READY)
            self.to_round(events.SiteReported(site_id=site))
        elif is_open and exchange is not None and site in exchange.awaited and state.can_exchange:
            self.to_exchange(_MESSAGES[exchange.state](site_id=site))
        elif is_open and exchange is not None and exchange.u5 is not None:
            self.to_exchange(events.SumComputed())
        elif self.round.state is RoundState.FOLDING:
            self.to_round(events.RoundFolded())

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        for site in self.sites:
            if site not in self.lost and site not in self.suspended:
                self.seen_at[site] = self.now

    def act(self, choice: int, who: int) -> None:
        site = self.sites[who % len(self.sites)]
        state = self.parts[site]
        exchange = self.exchange_view()
        is_mute = site in self.lost or site in self.suspended
        if choice <= 4 and not is_mute:
            self.follow(site)
        elif choice == 5 and not state.is_gone and not is_mute:
            self.move(site, P.DECLINED)
            self.report(site)
        elif choice == 6:
            self.pass_time(7)
        elif choice == 7 and exchange is not None and exchange.state is ExchangeState.REVEALING and exchange.u5 is None:
            self.move(site, P.REJECTED)
            if site in exchange.expected:
                self.to_exchange(events.LiarNamed(site_id=site))
        elif choice == 8 and exchange is not None and exchange.state is ExchangeState.COLLECTING:
            self.move(site, P.REJECTED)
            self.to_exchange(events.DealerBlamed(dealer=site))
        elif choice == 9:
            self.lost.add(site)
        elif choice == 10:
            self.lost.discard(site)
            self.suspended.discard(site)
        elif choice == 11:
            self.suspend(site)
        elif choice == 12:
            self.pass_time(130)
        self.to_exchange(events.TimePassed())
        self.to_round(events.TimePassed())

    def sentence(self) -> str:
        sites = {
            site: SitePicture(
                standing=SiteStanding.SUSPENDED if site in self.suspended else SiteStanding.MAY_TAKE_PART,
                last_seen_at=self.seen_at[site],
            )
            for site in self.sites
        }
        opened = RoundPicture(status=self.round_view(), exchange=self.exchange_view(), steps={}, effect=None)
        picture = RunPicture(
            state=RunState.ACTIVE,
            reason=None,
            round_index=0,
            n_rounds=1,
            rules=self.rules,
            sites=sites,
            round=opened,
            following=next_attempt([]),
            said={},
            now=self.now,
        )
        return what_run_waits_for(picture)

    def check(self) -> None:
        if not self.round.state.is_final:
            said = self.sentence()
            is_computing = "the sum to be computed" in said or "the new public state to be computed" in said
            assert is_computing or any(site in said for site in self.sites), said
            assert "no site" not in said
            assert said.endswith(".")
        if self.round.state is RoundState.TRAINING:
            assert any(state.is_at_work for state in self.parts.values())
        frozen = [set(getattr(self.exchange, name)) for name in _SETS if self.exchange and getattr(self.exchange, name)]
        assert all(later <= earlier for earlier, later in pairwise(frozen))
        assert self.n_exchanges <= MAX_EXCHANGE_ATTEMPTS
        assert self.n_sums <= 1


_WALKS = {
    "n_sites": st.integers(3, 8),
    "extra_quorum": st.integers(0, 3),
    "has_enough": st.booleans(),
    "head_start": st.integers(0, 45),
    "actions": st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), max_size=120),
}


def walked(
    n_sites: int, extra_quorum: int, actions: list[tuple[int, int]], *, has_enough: bool, head_start: int
) -> Model:
    """A model after so many steps of honest sites in turn, which lead deep into an exchange, and then these actions."""
    quorum = min(3 + extra_quorum, n_sites)
    model = Model(n_sites, quorum, quorum if has_enough else None)
    for step in range(head_start):
        model.act(0, step)
        model.check()
    for choice, who in actions:
        model.act(choice, who)
        model.check()
    return model


@settings(max_examples=150, deadline=None)
@given(**_WALKS)
def test_round_under_any_events_names_whom_it_waits_for_and_ends_once_they_are_back(
    n_sites: int, extra_quorum: int, has_enough: bool, head_start: int, actions: list[tuple[int, int]]
) -> None:
    model = walked(n_sites, extra_quorum, actions, has_enough=has_enough, head_start=head_start)
    model.lost.clear()
    model.suspended.clear()
    for _ in range(80):
        model.act(6, 0)
        for who in range(n_sites):
            model.act(0, who)
            model.check()
    assert model.round.state.is_final
    if model.round.state is RoundState.COMMITTED:
        assert model.exchange is not None
        assert len(model.exchange.u3 or ()) >= model.rules.quorum
    else:
        assert model.round.reason is not None


@settings(max_examples=100, deadline=None)
@given(**_WALKS)
def test_round_whose_sites_never_come_back_ends_once_they_are_revoked(
    n_sites: int, extra_quorum: int, has_enough: bool, head_start: int, actions: list[tuple[int, int]]
) -> None:
    model = walked(n_sites, extra_quorum, actions, has_enough=has_enough, head_start=head_start)
    for site in model.sites:
        if not model.parts[site].is_gone or model.parts[site] is P.DROPPED:
            model.move(site, P.DROPPED, DropReason.SITE_REVOKED)
            model.report(site)
    for _ in range(4):
        if model.exchange is not None and model.exchange.u5 is not None:
            model.to_exchange(events.SumComputed())
        if model.round.state is RoundState.FOLDING:
            model.to_round(events.RoundFolded())
        model.act(6, 0)
    assert model.round.state.is_final


@settings(max_examples=100, deadline=None)
@given(**_WALKS)
def test_cancel_ends_a_round_in_every_state_at_once(
    n_sites: int, extra_quorum: int, has_enough: bool, head_start: int, actions: list[tuple[int, int]]
) -> None:
    model = walked(n_sites, extra_quorum, actions, has_enough=has_enough, head_start=head_start)
    if not model.round.state.is_final:
        model.to_round(events.RunCancelled())
        assert model.round.reason is events.AbortReason.RUN_CANCELLED
