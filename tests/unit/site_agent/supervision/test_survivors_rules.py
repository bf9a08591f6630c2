"""Which sites may be in a sum with this one: the rules apart from everything around them."""

from __future__ import annotations

import pytest

from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams
from fl_protocol.testing.federation import RUN_ID
from site_agent.errors import RoundRefusedError
from site_agent.state.joined_round import survivors_digest
from site_agent.state.payload_memory import MaskedCohort
from site_agent.supervision.survivors_rules import EarlierSums, check_sites

SITES = [SiteId(f"site-{number:02d}") for number in range(12)]
OTHER_RUN = RunId("run-" + "z" * 26)


def masked(
    sites: list[SiteId], *, run_id: RunId = RUN_ID, assumed_colluders: int = 0, threshold: int | None = None
) -> MaskedCohort:
    dealt = SecAggParams(assumed_colluders=assumed_colluders).threshold(len(sites))
    context = ExchangeContext(run_id=run_id, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=0)
    return MaskedCohort(context=context, sites=frozenset(sites), threshold=threshold or dealt)


def refusal(
    sites: list[SiteId],
    *,
    earlier: list[MaskedCohort] | None = None,
    required: list[SiteId] | None = None,
    evaluated: list[SiteId] | None = None,
    assumed_colluders: int = 0,
) -> str | None:
    """The reason of the refusal; None when the sites are accepted."""
    sums = EarlierSums(
        required_survivors=None if required is None else survivors_digest(required),
        evaluated_among=None if evaluated is None else frozenset(evaluated),
        cohorts=earlier or [],
    )
    params = SecAggParams(assumed_colluders=assumed_colluders)
    try:
        check_sites(sites, sums, n_cohort=len(sites), params=params, run_id=RUN_ID)
    except RoundRefusedError as error:
        return error.reason
    return None


def test_first_exchange_of_a_payload_admits_any_sites() -> None:
    assert refusal(SITES[:3]) is None


@pytest.mark.parametrize(("n_left", "expected"), [(3, "survivors-split"), (4, None), (11, None)])
def test_sites_that_could_all_be_left_over_are_refused(n_left: int, expected: str | None) -> None:
    """12 sites, t = 9: nine may have unmasked the first exchange among themselves, so three may be left over."""
    assert refusal(SITES[-n_left:], earlier=[masked(SITES)]) == expected


def test_newcomers_do_not_count() -> None:
    newcomers = [SiteId(f"new-{number}") for number in range(6)]
    assert refusal([*SITES[-3:], *newcomers], earlier=[masked(SITES)]) == "survivors-split"


def test_assumed_colluders_raise_the_number() -> None:
    cohort = masked(SITES, assumed_colluders=1)
    assert refusal(SITES[-4:], earlier=[cohort], assumed_colluders=1) == "survivors-split"
    assert refusal(SITES[-5:], earlier=[cohort], assumed_colluders=1) is None


def test_threshold_is_that_of_the_earlier_exchange_whatever_the_policy_says_now() -> None:
    """12 sites under c = 0 dealt t = 9. With c = 8 now, t would be 11: 12 - 11 + 8 = 9 left over, in truth 11."""
    cohort = masked(SITES, assumed_colluders=0)
    assert refusal(SITES[-11:], earlier=[cohort], assumed_colluders=8) == "survivors-split"
    assert refusal(SITES, earlier=[cohort], assumed_colluders=8) is None


def test_every_earlier_exchange_counts_not_only_the_last() -> None:
    assert refusal(SITES[-3:], earlier=[masked(SITES), masked(SITES[-3:])]) == "survivors-split"


def test_required_sites_must_be_the_same_set() -> None:
    assert refusal([SITES[2], SITES[0], SITES[1]], required=SITES[:3]) is None
    for others in (SITES[:4], SITES[:2], SITES[1:4]):
        assert refusal(others, required=SITES[:3]) == "unresolved-reveal"


def test_evaluation_revealed_admits_the_same_sites_only() -> None:
    assert refusal([SITES[2], SITES[0], SITES[1]], evaluated=SITES[:3]) is None
    for others in (SITES[:4], SITES[:2], SITES[1:4]):
        assert refusal(others, evaluated=SITES[:3]) == "evaluation-revealed"


@pytest.mark.parametrize(
    ("n_newcomers", "expected"),
    # t = 9 of the earlier twelve; with k newcomers beside them t' = floor(2(12 + k) / 3) + 1 of the 12 + k here.
    [(0, None), (12, None), (18, "survivors-split")],
)
def test_newcomers_in_another_run_may_make_room_for_two_sums(n_newcomers: int, expected: str | None) -> None:
    """Whoever is at work in both runs reveals in one; 9 + t' sites without a common one must not fit: 30 = 9 + 21."""
    newcomers = [SiteId(f"new-{number:02d}") for number in range(n_newcomers)]
    assert refusal([*SITES, *newcomers], earlier=[masked(SITES, run_id=OTHER_RUN)]) == expected


def test_strangers_in_another_run_are_refused() -> None:
    """Four and four that share this site alone: 3 + 3 of 7."""
    assert refusal(SITES[3:7], earlier=[masked(SITES[:4], run_id=OTHER_RUN)]) == "survivors-split"


def test_cohort_of_another_run_less_one_is_admitted_while_nothing_is_revealed() -> None:
    """Four and three of them: 3 + 3 of 4 share two; one of these is honest with one assumed colluder."""
    assert refusal(SITES[:3], earlier=[masked(SITES[:4], run_id=OTHER_RUN)]) is None
