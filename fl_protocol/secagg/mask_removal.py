"""Secrets in, mask terms out: of every survivor its self-mask, of every site that dropped its pair masks.

The one place that says which masks stand on a sum of masked vectors: the coordinator takes them away, and whoever
checks its sum takes them away again. Every secret is compared with what its owner signed in M1 before it is used, so
that a wrong secret is never a wrong sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.secagg import shamir
from fl_protocol.secagg.cohort import Survivors
from fl_protocol.secagg.key_agreement import mask_key_pair, pair_seed, self_seed
from fl_protocol.secagg.masking import MaskSign, MaskTerm, mask_term
from fl_protocol.secagg.messages import ShareKind
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import commit_to_b


def mask_removal_terms(survivors: Survivors, secrets: Mapping[SiteId, int]) -> tuple[MaskTerm, ...]:
    """The terms that, applied to the sum of the survivors' masked vectors, leave the sum of their vectors.

    Args:
        survivors: U3.
        secrets: of every sharer one element of GF(p): ``b`` of a survivor, ``rho`` of a site that dropped.

    Raises:
        SecAggRefusedError: SECRET_INVALID, blaming the owner, where a secret is not the one behind its M1, or missing.
    """
    terms = [_self_term(survivors, site, secrets) for site in survivors.sites]
    for site in survivors.dropped:
        terms.extend(_pair_terms(survivors, site, secrets))
    return tuple(terms)


def _self_term(survivors: Survivors, site: SiteId, secrets: Mapping[SiteId, int]) -> MaskTerm:
    """Takes one survivor's self-mask away."""
    b, cohort = _secret_of(site, secrets), survivors.cohort
    commitment = commit_to_b(shamir.element_to_bytes(b), site=site, h_manifest=cohort.h_manifest)
    if commitment != cohort.member(site).b_commitment:
        raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=site, kind=ShareKind.SELF_MASK.value)
    return mask_term(self_seed(b, site=site, h_sharers=survivors.sharers.h_sharers), MaskSign.SUBTRACT)


def _pair_terms(survivors: Survivors, dropped: SiteId, secrets: Mapping[SiteId, int]) -> list[MaskTerm]:
    """Take away what every survivor added or subtracted for a site that did not survive."""
    cohort, h_sharers = survivors.cohort, survivors.sharers.h_sharers
    pair = mask_key_pair(_secret_of(dropped, secrets), site=dropped, h_manifest=cohort.h_manifest)
    if pair.public != cohort.member(dropped).mask_key:
        raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=dropped, kind=ShareKind.MASK_KEY.value)
    terms = []
    for survivor in survivors.sites:
        public = cohort.member(survivor).mask_key
        seed = pair_seed(pair.private, public, sites=(dropped, survivor), h_sharers=h_sharers)
        sign_of_survivor = MaskSign.ADD if dropped > survivor else MaskSign.SUBTRACT
        terms.append(mask_term(seed, sign_of_survivor.opposite))
    return terms


def _secret_of(site: SiteId, secrets: Mapping[SiteId, int]) -> int:
    try:
        return secrets[site]
    except KeyError as error:
        raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=site, cause="missing") from error
