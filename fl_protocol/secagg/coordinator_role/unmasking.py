"""M9 in, secrets out, and with them the mask terms that stand on the sum.

What the coordinator learns here is, for each sharer, one of its two secrets: b of a survivor, whose pair masks stay
unknown and cancel; rho of a site that dropped, whose self-mask stays unknown, so that its vector, should it still
arrive, stays hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.secagg import shamir
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort
from fl_protocol.secagg.mask_removal import mask_removal_terms
from fl_protocol.secagg.masking import MaskTerm
from fl_protocol.secagg.messages import Reveal, RevealedShare, ShareKind, StatementKind
from fl_protocol.secagg.reading import check_context, check_sender, check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import commit_to_b_share, commit_to_rho_share
from fl_protocol.signing.signed import SignedBody


def check_m9(surviving: SurvivingCohort, data: bytes, *, sender: SiteId) -> Reveal:
    """Check one M9 as it arrives, every share against the dealer's commitment.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SENDER_MISMATCH, SITE_UNKNOWN, SIGNATURE_INVALID, CONTEXT_MISMATCH; and,
            blaming the sender, SHARE_MISSING, SHARE_INVALID.
    """
    signed = read_message(SignedBody.decode, data, blamed=sender)
    reveal = read_message(Reveal.decode, signed.body, blamed=sender)
    check_sender(reveal.site, sender)
    if sender not in surviving.sites:
        raise SecAggRefusedError(RefusalReason.SITE_UNKNOWN, site=sender)
    cohort = surviving.survivors.cohort
    check_signature(cohort.member(sender).spki_der, StatementKind.M9, signed, site=sender)
    check_context(reveal.h_survivors, surviving.survivors.h_survivors, site=sender)
    if tuple(share.peer for share in reveal.shares) != surviving.shared.sites:
        raise SecAggRefusedError(RefusalReason.SHARE_MISSING, blamed=sender, n_shares=len(reveal.shares))
    survivors = frozenset(surviving.sites)
    index = cohort.index(sender)
    for share in reveal.shares:
        _check_share(
            share,
            holder=sender,
            is_survivor=share.peer in survivors,
            commitment=surviving.shared.leaves[share.peer][index].commitment,
        )
    return reveal


def recover_secrets(surviving: SurvivingCohort, m9s: Mapping[SiteId, bytes]) -> dict[SiteId, int]:
    """Of every sharer the one secret that was revealed: b of a survivor, rho of a site that dropped.

    Args:
        surviving: U3.
        m9s: the reveals, each of which passed ``check_m9``; they are checked again.

    Raises:
        SecAggRefusedError: as ``check_m9``; QUORUM_MISSING; and, blaming the dealer, SECRET_INVALID for shares that are
            no elements. Whether a secret is the one behind its M1, ``mask_removal_terms`` says.
    """
    if len(m9s) < surviving.quorum:
        raise SecAggRefusedError(RefusalReason.QUORUM_MISSING, found=len(m9s), expected=surviving.quorum)
    recovery = _Recovery(surviving, {site: check_m9(surviving, m9s[site], sender=site) for site in sorted(m9s)})
    return {site: recovery.recombine(site) for site in surviving.shared.sites}


def recover_mask_terms(surviving: SurvivingCohort, m9s: Mapping[SiteId, bytes]) -> tuple[MaskTerm, ...]:
    """The terms that, applied to the sum of the survivors' masked vectors, leave the sum of their vectors.

    Raises:
        SecAggRefusedError: as ``recover_secrets`` and ``mask_removal_terms``.
    """
    return mask_removal_terms(surviving.survivors, recover_secrets(surviving, m9s))


def _check_share(share: RevealedShare, *, holder: SiteId, is_survivor: bool, commitment: bytes) -> None:
    """Check one share's kind and value; the liar is the holder, who saw it match at M4."""
    expected_kind = ShareKind.SELF_MASK if is_survivor else ShareKind.MASK_KEY
    if share.kind is not expected_kind:
        raise SecAggRefusedError(RefusalReason.SHARE_MISSING, blamed=holder, peer=share.peer, kind=share.kind.value)
    if is_survivor:
        matches = commit_to_b_share(share.share, dealer=share.peer, holder=holder) == commitment[32:]
    else:
        matches = commit_to_rho_share(share.share, dealer=share.peer, holder=holder) == commitment[:32]
    if not matches:
        raise SecAggRefusedError(RefusalReason.SHARE_INVALID, blamed=holder, peer=share.peer)


class _Recovery:
    """Puts secrets together from checked reveals; the weights of a set of holders are computed once."""

    def __init__(self, surviving: SurvivingCohort, reveals: Mapping[SiteId, Reveal]) -> None:
        cohort = surviving.survivors.cohort
        self._thresholds = {header.site: header.threshold for header in surviving.survivors.sharers.headers}
        self._shares = {
            cohort.index(site) + 1: {share.peer: share.share for share in reveal.shares}
            for site, reveal in reveals.items()
        }
        self._weights: dict[int, shamir.ZeroWeights] = {}

    def recombine(self, dealer: SiteId) -> int:
        """The dealer's secret, from the first shares of its threshold."""
        threshold = self._thresholds[dealer]
        holders = tuple(sorted(self._shares)[:threshold])
        if threshold not in self._weights:
            self._weights[threshold] = shamir.ZeroWeights(holders)
        try:
            shares = {holder: shamir.element_from_bytes(self._shares[holder][dealer]) for holder in holders}
        except shamir.SharesInvalidError as error:
            # The share matches its commitment, so that it is the dealer who committed to no element.
            raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=dealer, cause=error.code) from error
        return self._weights[threshold].recombine(shares)
