"""M8 is checked, M9 is made: of every sharer one share, of one kind, by the site's own table; then none is left."""

from __future__ import annotations

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import check_confirmations
from fl_protocol.secagg.messages import Reveal, RevealedShare, ShareKind, SignedList, StatementKind
from fl_protocol.secagg.reading import read_message
from fl_protocol.secagg.site_role.phases import Confirmed, HeldShare, Revealed
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import sign_body


def reveal(state: Confirmed, m8: bytes, *, signer: Signer) -> Revealed:
    """Reveal once a threshold of survivors signed the same survivor set as this site.

    Safety: 2t > n + c, so that no other survivor set can gather a threshold of signatures (design 1).

    Raises:
        SecAggRefusedError: as ``check_confirmations``.
    """
    survivors = state.survivors
    entries = read_message(SignedList.decode, m8).entries
    check_confirmations(entries, survivors, quorum=state.terms.params.threshold(survivors.cohort.n))
    alive = frozenset(survivors.sites)
    shares = tuple(_choose(held, alive) for held in state.held)
    body = Reveal(site=state.terms.site_id, h_survivors=survivors.h_survivors, shares=shares)
    m9 = sign_body(signer, StatementKind.M9.value, body.encode()).encode()
    return Revealed(terms=state.terms, survivors=survivors, m9=m9)


def _choose(held: HeldShare, alive: frozenset[SiteId]) -> RevealedShare:
    """Exactly one kind of share of one peer. Nothing that the coordinator lists is asked here but the survivor set."""
    match held.dealer in alive:
        case True:
            return RevealedShare(peer=held.dealer, kind=ShareKind.SELF_MASK, share=held.b_share)
        case False:
            return RevealedShare(peer=held.dealer, kind=ShareKind.MASK_KEY, share=held.rho_share)
