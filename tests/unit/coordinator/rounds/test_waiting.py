"""What a run waits for, in every state: somebody or something, by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.rounds.attempts import NextAttempt
from coordinator.rounds.events import AbortReason
from coordinator.rounds.exchange_machine import ExchangeState, ExchangeStatus
from coordinator.rounds.participation_machine import ParticipationState as P
from coordinator.rounds.quorum import RoundRules
from coordinator.rounds.round_machine import RoundState, RoundStatus
from coordinator.rounds.run_machine import RunState
from coordinator.rounds.waiting import (
    EffectPicture,
    RoundPicture,
    RunPicture,
    SitePicture,
    SiteStanding,
    StepPicture,
    what_run_waits_for,
)
from fl_protocol.ids import SiteId
from fl_protocol.spec.secagg_params import SecAggParams

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
A, B, C = SITES = tuple(SiteId(name) for name in ("a-site", "b-site", "c-site"))
RULES = RoundRules(
    quorum=3, params=SecAggParams(), round_deadline=timedelta(hours=1), phase_deadline=timedelta(minutes=10)
)
AT_ONCE = NextAttempt(round_attempt=0, not_before=None, last_reason=None, is_given_up=False)
HERE = SitePicture(standing=SiteStanding.MAY_TAKE_PART, last_seen_at=NOW)


def run(state: RunState = RunState.ACTIVE, **changes: object) -> RunPicture:
    values: dict[str, object] = {
        "state": state,
        "reason": None,
        "round_index": 2,
        "n_rounds": 5,
        "rules": RULES,
        "sites": dict.fromkeys(SITES, HERE),
        "round": None,
        "following": AT_ONCE,
        "said": {},
        "now": NOW,
        **changes,
    }
    return RunPicture(**values)  # type: ignore[arg-type]


def opened(state: RoundState, *states: P, **changes: object) -> RoundPicture:
    status = RoundStatus(
        state=state,
        participations=dict(zip(SITES, states or (P.READY,) * 3, strict=True)),
        deadline_at=NOW + timedelta(minutes=5),
    )
    values: dict[str, object] = {"status": status, "exchange": None, "steps": {}, "effect": None, **changes}
    return RoundPicture(**values)  # type: ignore[arg-type]


def exchange(state: ExchangeState, **changes: object) -> ExchangeStatus:
    values: dict[str, object] = {
        "state": state,
        "invited": SITES,
        "arrived": frozenset({A}),
        "gone": frozenset(),
        "phase_deadline_at": NOW + timedelta(minutes=10),
        **{f"u{i}": SITES for i in range(1, 5)},
        **changes,
    }
    return ExchangeStatus(**values)  # type: ignore[arg-type]


def seen(ago: timedelta | None, standing: SiteStanding = SiteStanding.MAY_TAKE_PART) -> SitePicture:
    return SitePicture(standing=standing, last_seen_at=None if ago is None else NOW - ago)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (run(RunState.DRAFT), "Waits for a study lead to start it."),
        (run(RunState.COMPLETED), "All rounds are committed."),
        (
            run(
                RunState.COMPLETED,
                release=EffectPicture(n_failures=4, error="full", next_try_at=NOW),
            ),
            (
                "All rounds are committed;"
                " waits for the release, which failed 4 times with full and is tried again at 12:30 UTC."
            ),
        ),
        (run(RunState.CANCELLED), "Was cancelled."),
        (run(RunState.FAILED, reason="attempts-exhausted: fold-refused"), "Failed: attempts-exhausted: fold-refused."),
        (
            run(
                RunState.AWAITING_SITES,
                sites={A: HERE, B: seen(None, SiteStanding.SAID_NOTHING), C: seen(timedelta(0), SiteStanding.SAID_NO)},
            ),
            "Waits for 3 approvals and has 1: b-site (has not approved; never heard of), c-site (declined the run).",
        ),
        (
            run(sites={A: HERE, B: seen(timedelta(minutes=6)), C: seen(timedelta(days=1), SiteStanding.SUSPENDED)}),
            (
                "Round 2 waits for 2 more of 3 sites: b-site (last heard of at 12:24 UTC, 6 min ago), "
                "c-site (is suspended; last heard of at 2026-02-28 12:30 UTC, 24 h ago)."
            ),
        ),
        (
            run(
                following=NextAttempt(
                    round_attempt=3,
                    not_before=NOW + timedelta(minutes=2),
                    last_reason=AbortReason.QUORUM_NOT_REACHED,
                    is_given_up=False,
                ),
                said={B: "site-paused"},
            ),
            (
                "Round 2 waits until 12:32 UTC for its attempt 4, the last one having ended in quorum-not-reached "
                "(b-site said site-paused)."
            ),
        ),
        (run(), "Round 2 is about to open among a-site, b-site, c-site."),
        (run(RunState.PAUSED), "Is paused, and waits for a person to resume it."),
        (
            run(
                round=opened(
                    RoundState.TRAINING,
                    P.READY,
                    P.TRAINING,
                    P.INVITED,
                    steps={B: StepPicture(activity="training", step=12, steps=40)},
                )
            ),
            (
                "Round 2 waits for training at b-site (training, step 12 of 40), c-site (has not begun), "
                "at least until 12:35 UTC."
            ),
        ),
        (
            run(round=opened(RoundState.EXCHANGING, exchange=exchange(ExchangeState.COLLECTING))),
            (
                "Round 2 waits for the masked update of b-site, c-site; it has 1 and needs 3, "
                "and who makes no progress until 12:40 UTC is left out."
            ),
        ),
        (
            run(
                RunState.PAUSED,
                round=opened(
                    RoundState.EXCHANGING,
                    exchange=exchange(ExchangeState.REVEALING, arrived=frozenset({A, B}), away=frozenset({C})),
                ),
                sites={A: HERE, B: HERE, C: seen(timedelta(minutes=3), SiteStanding.SUSPENDED)},
            ),
            (
                "Round 2 waits for the unmasking shares of c-site (is suspended; last heard of at 12:27 UTC, "
                "3 min ago); it has 2 and needs 3; then the run is paused until a person resumes it."
            ),
        ),
        (
            run(
                round=opened(
                    RoundState.EXCHANGING,
                    exchange=exchange(ExchangeState.REVEALING, u5=SITES),
                    effect=EffectPicture(n_failures=4, error="blob-store-full", next_try_at=NOW + timedelta(minutes=1)),
                )
            ),
            "Round 2 waits for the sum, which failed 4 times with blob-store-full and is tried again at 12:31 UTC.",
        ),
        (run(round=opened(RoundState.FOLDING)), "Round 2 waits for the new public state to be computed."),
    ],
)
def test_sentence(picture: RunPicture, sentence: str) -> None:
    assert what_run_waits_for(picture) == sentence


def test_round_between_two_exchanges_names_who_is_away_and_until_when() -> None:
    found = opened(RoundState.EXCHANGING, P.READY, P.READY, P.DROPPED)
    status = replace(found.status, exchange_failed_at=NOW, silent=frozenset({C}), away=frozenset({C}))
    picture = run(
        round=replace(found, status=status, exchange=exchange(ExchangeState.FAILED)),
        sites={A: HERE, B: HERE, C: seen(timedelta(minutes=5))},
    )
    assert what_run_waits_for(picture) == (
        "Round 2 keeps what was trained and waits for 1 more of 3 sites, to begin its secure sum afresh: "
        "c-site (last heard of at 12:25 UTC, 5 min ago), until 13:30 UTC."
    )


@settings(max_examples=200, deadline=None)
@given(
    state=st.sampled_from([state for state in RunState if not state.is_final]),
    standings=st.tuples(*[st.sampled_from(SiteStanding)] * 3),
    minutes=st.tuples(*[st.one_of(st.none(), st.integers(0, 10_000))] * 3),
    wait_s=st.one_of(st.none(), st.integers(-100, 1000)),
)
def test_run_without_a_round_always_names_a_site_or_a_person(
    state: RunState,
    standings: tuple[SiteStanding, ...],
    minutes: tuple[int | None, ...],
    wait_s: int | None,
) -> None:
    sites = {
        site: seen(None if ago is None else timedelta(minutes=ago), standing)
        for site, standing, ago in zip(SITES, standings, minutes, strict=True)
    }
    following = replace(
        AT_ONCE,
        not_before=None if wait_s is None else NOW + timedelta(seconds=wait_s),
        last_reason=AbortReason.QUORUM_NOT_REACHED,
    )
    said = what_run_waits_for(run(state, sites=sites, following=following))
    somebody = (*SITES, "study lead", "a person", "attempt", "every site has given its word")
    assert any(name in said for name in somebody), said
    assert said.endswith(".")
    assert "None" not in said
