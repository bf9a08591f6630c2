"""M9 in, mask terms out: of every survivor its self-mask, of every site that dropped its pair masks with the survivors.

What the coordinator learns here is, for each sharer, one of its two secrets: b of a survivor, whose pair masks stay
unknown and cancel; rho of a site that dropped, whose self-mask stays unknown, so that its vector, should it still
arrive, stays hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.secagg import shamir
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort
from fl_protocol.secagg.key_agreement import mask_key_pair, pair_seed, self_seed
from fl_protocol.secagg.masking import MaskSign, MaskTerm, mask_term
from fl_protocol.secagg.messages import Reveal, RevealedShare, ShareKind, StatementKind
from fl_protocol.secagg.reading import check_context, check_sender, check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import commit_to_b, commit_to_b_share, commit_to_rho_share
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


def recover_mask_terms(surviving: SurvivingCohort, m9s: Mapping[SiteId, bytes]) -> tuple[MaskTerm, ...]:
    """The terms that, applied to the sum of the survivors' masked vectors, leave the sum of their vectors.

    Args:
        surviving: U3.
        m9s: the reveals, each of which passed ``check_m9``; they are checked again.

    Raises:
        SecAggRefusedError: as ``check_m9``; QUORUM_MISSING; and, blaming the dealer, SECRET_INVALID.
    """
    if len(m9s) < surviving.quorum:
        raise SecAggRefusedError(RefusalReason.QUORUM_MISSING, found=len(m9s), expected=surviving.quorum)
    recovery = _Recovery(surviving, {site: check_m9(surviving, m9s[site], sender=site) for site in sorted(m9s)})
    terms = [recovery.self_term(site) for site in surviving.sites]
    for site in surviving.survivors.dropped:
        terms.extend(recovery.pair_terms(site))
    return tuple(terms)


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
        self._surviving = surviving
        self._cohort = surviving.survivors.cohort
        self._h_sharers = surviving.survivors.sharers.h_sharers
        self._thresholds = {header.site: header.threshold for header in surviving.survivors.sharers.headers}
        self._shares = {
            self._cohort.index(site) + 1: {share.peer: share.share for share in reveal.shares}
            for site, reveal in reveals.items()
        }
        self._weights: dict[int, shamir.ZeroWeights] = {}

    def self_term(self, site: SiteId) -> MaskTerm:
        """Takes one survivor's self-mask away."""
        b = self._recombine(site)
        commitment = commit_to_b(shamir.element_to_bytes(b), site=site, h_manifest=self._cohort.h_manifest)
        if commitment != self._cohort.member(site).b_commitment:
            raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=site, kind=ShareKind.SELF_MASK.value)
        return mask_term(self_seed(b, site=site, h_sharers=self._h_sharers), MaskSign.SUBTRACT)

    def pair_terms(self, dropped: SiteId) -> list[MaskTerm]:
        """Take away what every survivor added or subtracted for a site that did not survive."""
        pair = mask_key_pair(self._recombine(dropped), site=dropped, h_manifest=self._cohort.h_manifest)
        if pair.public != self._cohort.member(dropped).mask_key:
            raise SecAggRefusedError(RefusalReason.SECRET_INVALID, blamed=dropped, kind=ShareKind.MASK_KEY.value)
        terms = []
        for survivor in self._surviving.sites:
            public = self._cohort.member(survivor).mask_key
            seed = pair_seed(pair.private, public, sites=(dropped, survivor), h_sharers=self._h_sharers)
            sign_of_survivor = MaskSign.ADD if dropped > survivor else MaskSign.SUBTRACT
            terms.append(mask_term(seed, sign_of_survivor.opposite))
        return terms

    def _recombine(self, dealer: SiteId) -> int:
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
