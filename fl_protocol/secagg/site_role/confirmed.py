"""M6 is checked, M7 is made: the one survivor set of this exchange that this site will ever sign."""

from __future__ import annotations

from collections.abc import Collection

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import read_survivors
from fl_protocol.secagg.messages import Confirmation, SignedList, StatementKind
from fl_protocol.secagg.reading import read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.site_role.phases import Confirmed, Masked, check_enough, check_own_entry
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body


def confirm(state: Masked, m6: bytes, *, required: Collection[SiteId] | None, signer: Signer) -> Confirmed:
    """Verify the survivors, and sign their set.

    Args:
        state: the phase before.
        m6: the survivors' M5.
        required: the survivor set of an earlier exchange of the same round, which this one must equal.
        signer: the site's.

    Raises:
        SecAggRefusedError: as ``read_survivors``; OWN_MESSAGE_ALTERED, COHORT_TOO_SMALL, SURVIVORS_CHANGED.
    """
    terms = state.terms
    entries = read_message(SignedList.decode, m6).entries
    survivors = read_survivors(entries, state.sharers, n_bytes=terms.n_bytes)
    check_own_entry(SignedBody.decode(state.m5), entries)
    check_enough(len(survivors.sites), terms.params.min_survivors(survivors.cohort.n))
    if required is not None and set(required) != set(survivors.sites):
        raise SecAggRefusedError(RefusalReason.SURVIVORS_CHANGED, found=len(survivors.sites), expected=len(required))
    body = Confirmation(site=terms.site_id, h_survivors=survivors.h_survivors)
    m7 = sign_body(signer, StatementKind.M7.value, body.encode()).encode()
    return Confirmed(terms=terms, survivors=survivors, held=state.held, m7=m7)
