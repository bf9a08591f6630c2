"""The rule about survivors of a payload that was masked in an earlier exchange, apart from everything around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import RUN_ID
from site_agent.errors import RoundRefusedError
from site_agent.state.round_book import survivors_digest
from site_agent.supervision.exchange_desk import ExchangeDesk

SITES = [SiteId(f"site-{number:02d}") for number in range(12)]
CONTEXT = ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=1)


def check(
    survivors: list[SiteId],
    *,
    earlier: list[list[SiteId]],
    required: list[SiteId] | None = None,
    assumed_colluders: int = 0,
) -> None:
    admitted = SimpleNamespace(
        required_survivors=None if required is None else survivors_digest(required),
        params=SecAggParams(assumed_colluders=assumed_colluders),
    )
    cohorts = tuple(frozenset(cohort) for cohort in [*earlier, survivors])
    desk = SimpleNamespace(earlier_cohorts=lambda _: cohorts)
    role = SimpleNamespace(survivors=tuple(survivors))
    exchange = ExchangeDesk(SimpleNamespace(), admitted, desk)  # type: ignore[arg-type]
    exchange._check_survivors(role, CONTEXT)  # type: ignore[arg-type]


def test_first_exchange_of_a_payload_admits_any_survivors() -> None:
    check(SITES[:3], earlier=[])


@pytest.mark.parametrize(("n_left", "is_refused"), [(3, True), (4, False), (11, False)])
def test_survivors_that_could_all_be_left_over_are_refused(n_left: int, is_refused: bool) -> None:
    """12 sites, t = 9: nine may have unmasked the first exchange among themselves, so three may be left over."""
    left_over = SITES[-n_left:]
    if is_refused:
        with pytest.raises(RoundRefusedError) as refused:
            check(left_over, earlier=[SITES])
        assert refused.value.reason == "survivors-split"
    else:
        check(left_over, earlier=[SITES])


def test_newcomers_do_not_count() -> None:
    newcomers = [SiteId(f"new-{number}") for number in range(6)]
    with pytest.raises(RoundRefusedError):
        check([*SITES[-3:], *newcomers], earlier=[SITES])


def test_assumed_colluders_raise_the_number() -> None:
    with pytest.raises(RoundRefusedError):
        check(SITES[-4:], earlier=[SITES], assumed_colluders=1)
    check(SITES[-5:], earlier=[SITES], assumed_colluders=1)


def test_every_earlier_exchange_counts_not_only_the_last() -> None:
    with pytest.raises(RoundRefusedError):
        check(SITES[-3:], earlier=[SITES, SITES[-3:]])


def test_required_survivors_must_be_the_same_set() -> None:
    check([SITES[2], SITES[0], SITES[1]], earlier=[], required=SITES[:3])
    for others in (SITES[:4], SITES[:2], SITES[1:4]):
        with pytest.raises(RoundRefusedError) as refused:
            check(others, earlier=[], required=SITES[:3])
        assert refused.value.reason == "unresolved-reveal"
