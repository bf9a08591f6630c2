"""Which sites may be in a sum with this one, given the sums that its payload is, or may be, in already.

Two sums that hold the same payload of this site over different sites give, subtracted, what some of those sites hold.
Three rules keep them apart. All are asked before masking, of U2, and again of U3: a coordinator needs the M7 and M9 of
a threshold only, so what was masked counts as summed. Pure: the shell brings what the round book remembers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.secagg_params import SecAggParams
from site_agent.errors import RoundRefusedError
from site_agent.state.joined_round import survivors_digest
from site_agent.state.payload_memory import MaskedCohort


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierSums:
    """What this site did with the payload, or with a part of it, before.

    Attributes:
        required_survivors: digest of the survivors of a reveal whose result this site has not seen; None without one.
        evaluated_among: the survivors of the sum that the payload's evaluation is in; None where it is in none.
        cohorts: among whom the evaluation was masked in other exchanges, whatever became of them.
    """

    required_survivors: str | None
    evaluated_among: frozenset[SiteId] | None
    cohorts: Sequence[MaskedCohort]


def check_sites(
    sites: Collection[SiteId], earlier: EarlierSums, *, n_cohort: int, params: SecAggParams, run_id: RunId
) -> None:
    """Check the sharers, or the survivors, of an exchange.

    Args:
        sites: U2 before masking, U3 before M7 and M9.
        earlier: what this site remembers.
        n_cohort: how many sites U1 has.
        params: this site's own rules, now.
        run_id: of the exchange.

    Raises:
        RoundRefusedError: ``unresolved-reveal``, ``evaluation-revealed``, ``survivors-split``.
    """
    if earlier.required_survivors not in (None, survivors_digest(sites)):
        message = "the sites are not those of the sum that this site revealed shares for"
        raise RoundRefusedError(message, reason="unresolved-reveal", run_id=run_id)
    if earlier.evaluated_among not in (None, frozenset(sites)):
        message = "the evaluation of this adapter on this dataset is in a sum over other sites"
        raise RoundRefusedError(message, reason="evaluation-revealed", run_id=run_id)
    for cohort in earlier.cohorts:
        if cohort.context.run_id == run_id:
            is_split = _may_both_be_unmasked_in_a_run(sites, cohort, params)
        else:
            is_split = _may_both_be_unmasked_in_two_runs(sites, cohort, params, n_cohort=n_cohort)
        if is_split:
            message = "too few of those among whom this payload was masked before"
            raise RoundRefusedError(message, reason="survivors-split", run_id=run_id)


def _may_both_be_unmasked_in_a_run(sites: Collection[SiteId], cohort: MaskedCohort, params: SecAggParams) -> bool:
    """Whether so few of an earlier cohort are here that the others may unmask the earlier sum without them.

    Whoever is here and honest has left the earlier exchange, and reveals nothing in it any more. So more than the
    n - t that may be missing there, and the c that may lie, have to be here. The threshold is the one that this site
    dealt under: a policy that was changed since does not change how many shares open that mask.
    """
    max_left_over = len(cohort.sites) - cohort.threshold + params.assumed_colluders
    return len(cohort.sites.intersection(sites)) <= max_left_over


def _may_both_be_unmasked_in_two_runs(
    sites: Collection[SiteId], cohort: MaskedCohort, params: SecAggParams, *, n_cohort: int
) -> bool:
    """Whether two thresholds of sites, with only c in both, fit into the two cohorts together.

    A site may be at work in two runs at once, so being here is no leaving there. But whoever is honest reveals this
    evaluation among one set of survivors only; two sums over different ones need t and t' sites that share liars alone.
    """
    n_together = len(cohort.sites.union(sites))
    return cohort.threshold + params.threshold(n_cohort) <= n_together + params.assumed_colluders
