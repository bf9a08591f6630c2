"""M4 is checked: every dealer's shares are opened and compared with its commitment, before anything is masked."""

from __future__ import annotations

from collections.abc import Collection

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import Sharers, read_sharers
from fl_protocol.secagg.messages import Complaint, DealtShare, DealtShares, ShareKeys, StatementKind
from fl_protocol.secagg.reading import read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.sealing import Sealer, UnsealError
from fl_protocol.secagg.shamir import ELEMENT_BYTES, SharesInvalidError, element_from_bytes
from fl_protocol.secagg.site_role.phases import (
    Agreed,
    Complained,
    HeldShare,
    Shared,
    Terms,
    check_enough,
    check_own_entry,
)
from fl_protocol.secagg.transcript import commit_to_shares, is_in_tree, sealing_info
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import sign_body


def accept_shares(
    state: Shared, m4: bytes, *, sealer: Sealer, earlier_cohorts: Collection[Collection[SiteId]] = ()
) -> Agreed:
    """Open everybody's shares.

    Args:
        state: the phase before.
        m4: the shares dealt to this site.
        sealer: HPKE.
        earlier_cohorts: among whom the payload was masked before, in other attempts at this exchange.

    Raises:
        SecAggRefusedError: as ``read_sharers``; OWN_MESSAGE_ALTERED, COHORT_TOO_SMALL, SURVIVORS_SPLIT, SHARE_MISSING;
            and, blaming the dealer, SHARE_INVALID.
    """
    terms, cohort = state.terms, state.cohort
    entries = read_message(DealtShares.decode, m4).entries
    sharers = read_sharers([entry.header for entry in entries], cohort)
    check_own_entry(ShareKeys.decode(state.m3).header, sharers.entries)
    check_enough(len(sharers.sites), terms.params.min_sharers(cohort.n))
    for earlier in earlier_cohorts:
        _check_cannot_complete(earlier, sharers, terms)
    index = cohort.index(terms.site_id)
    for header, entry in zip(sharers.headers, entries, strict=True):
        # A leaf that is not the dealer's own, by its signed root, says nothing about the dealer: nobody is blamed.
        in_tree = is_in_tree(entry.leaf.encode(), entry.path, index=index, n_leaves=cohort.n, root=header.root)
        if not in_tree or entry.leaf.holder != terms.site_id:
            raise SecAggRefusedError(RefusalReason.SHARE_MISSING, site=header.site)
    held = tuple(
        state.own_share if site == terms.site_id else _open_share(state, entry, dealer=site, sealer=sealer)
        for site, entry in zip(sharers.sites, entries, strict=True)
    )
    return Agreed(terms=terms, secrets=state.secrets, sharers=sharers, held=held)


def complain(state: Shared, refusal: SecAggRefusedError, *, signer: Signer) -> Complained:
    """Name the dealer to the coordinator, signed. Only the name leaves: see ``Complaint`` for why no proof does."""
    if refusal.blamed is None:
        raise refusal
    body = Complaint(
        site=state.terms.site_id, h_cohort=state.cohort.h_cohort, dealer=refusal.blamed, reason=refusal.reason
    )
    signed = sign_body(signer, StatementKind.COMPLAINT.value, body.encode())
    return Complained(terms=state.terms, cohort=state.cohort, complaint=signed.encode())


def _check_cannot_complete(earlier: Collection[SiteId], sharers: Sharers, terms: Terms) -> None:
    """Check that so many of an earlier cohort are here that its sum can no longer be unmasked.

    Safety: here and not at M6. A coordinator needs neither this site's M7 nor its M9: it can complete a sum that holds
    this site's vector and never show it an M6. What is masked may be summed.

    Raises:
        SecAggRefusedError: SURVIVORS_SPLIT.
    """
    returning = len(set(earlier).intersection(sharers.sites))
    max_left_over = terms.params.max_left_over(len(set(earlier)))
    if returning <= max_left_over:
        raise SecAggRefusedError(RefusalReason.SURVIVORS_SPLIT, found=returning, expected=max_left_over + 1)


def _open_share(state: Shared, entry: DealtShare, *, dealer: SiteId, sealer: Sealer) -> HeldShare:
    """The two shares of one dealer, once they match what it committed to. Raises SecAggRefusedError (SHARE_INVALID)."""
    holder = state.terms.site_id
    info = sealing_info(state.cohort.h_cohort, dealer=dealer, holder=holder)
    try:
        plaintext = sealer.unseal(entry.leaf.ciphertext, private=state.transport_private, info=info)
        rho_share, b_share = plaintext[:ELEMENT_BYTES], plaintext[ELEMENT_BYTES:]
        element_from_bytes(rho_share)
        element_from_bytes(b_share)
    except (UnsealError, SharesInvalidError) as error:
        raise SecAggRefusedError(RefusalReason.SHARE_INVALID, blamed=dealer, cause=error.code) from error
    if commit_to_shares(rho_share, b_share, dealer=dealer, holder=holder) != entry.leaf.commitment:
        raise SecAggRefusedError(RefusalReason.SHARE_INVALID, blamed=dealer, cause="commitment")
    return HeldShare(dealer=dealer, rho_share=rho_share, b_share=b_share)
