"""M2 is checked, M3 is made: the cohort is frozen, and both secrets are dealt to it."""

from __future__ import annotations

from fl_protocol.secagg import shamir
from fl_protocol.secagg.cohort import Cohort, read_cohort
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.secagg.messages import ShareHeader, ShareKeys, ShareLeaf, SignedList, StatementKind
from fl_protocol.secagg.reading import read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.sealing import Sealer
from fl_protocol.secagg.site_role.phases import Advertised, HeldShare, Shared, Terms, check_enough, check_own_entry
from fl_protocol.secagg.transcript import commit_to_shares, sealing_info, tree_root
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body


def share(state: Advertised, m2: bytes, *, signer: Signer, entropy: Entropy, sealer: Sealer) -> Shared:
    """Verify every member of the cohort against the own approvals, then deal shares to all of them.

    Raises:
        SecAggRefusedError: as ``read_cohort``; OWN_MESSAGE_ALTERED, COHORT_TOO_SMALL, COHORT_TOO_LARGE.
    """
    terms = state.terms
    entries = read_message(SignedList.decode, m2).entries
    cohort = read_cohort(entries, h_manifest=terms.h_manifest, peers=terms.peers)
    check_own_entry(SignedBody.decode(state.m1), entries)
    check_cohort_size(cohort, terms)
    threshold = terms.params.threshold(cohort.n)
    rho_shares, b_shares = (
        shamir.split(secret, threshold=threshold, n=cohort.n, entropy=entropy)
        for secret in (state.secrets.rho, state.secrets.b)
    )
    held = [
        HeldShare(
            dealer=terms.site_id,
            rho_share=shamir.element_to_bytes(rho_share),
            b_share=shamir.element_to_bytes(b_share),
        )
        for rho_share, b_share in zip(rho_shares, b_shares, strict=True)
    ]
    leaves = tuple(
        _deal(share, cohort=cohort, index=index, terms=terms, sealer=sealer) for index, share in enumerate(held)
    )
    header = ShareHeader(
        site=terms.site_id,
        h_cohort=cohort.h_cohort,
        root=tree_root([leaf.encode() for leaf in leaves]),
        threshold=threshold,
    )
    signed = sign_body(signer, StatementKind.M3.value, header.encode())
    return Shared(
        terms=terms,
        secrets=state.secrets,
        transport_private=state.transport_private,
        cohort=cohort,
        own_share=held[cohort.index(terms.site_id)],
        m3=ShareKeys(header=signed, leaves=leaves).encode(),
    )


def check_cohort_size(cohort: Cohort, terms: Terms) -> None:
    """Check the cohort against this site's own minimum, its own threshold, and the layout's capacity proof.

    Raises:
        SecAggRefusedError: COHORT_TOO_SMALL, COHORT_TOO_LARGE.
    """
    check_enough(cohort.n, terms.params.min_survivors(cohort.n))
    if cohort.n > terms.max_sites:
        # Invariant: beyond max_sites a sum could wrap, and a wrapped sum is a wrong sum.
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_LARGE, found=cohort.n, max_sites=terms.max_sites)


def _deal(share: HeldShare, *, cohort: Cohort, index: int, terms: Terms, sealer: Sealer) -> ShareLeaf:
    """Seal one holder's two shares to it; the own ones stay here, under a commitment like all others."""
    holder = cohort.members[index]
    ciphertext = b""
    if holder.site != terms.site_id:
        ciphertext = sealer.seal(
            share.rho_share + share.b_share,
            public=holder.transport_key,
            info=sealing_info(cohort.h_cohort, dealer=terms.site_id, holder=holder.site),
        )
    commitment = commit_to_shares(share.rho_share, share.b_share, dealer=terms.site_id, holder=holder.site)
    return ShareLeaf(holder=holder.site, ciphertext=ciphertext, commitment=commitment)
