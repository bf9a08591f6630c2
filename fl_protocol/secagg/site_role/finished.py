"""M10 is checked: the coordinator's signature under the result of this exchange, for these survivors."""

from __future__ import annotations

from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.reading import check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.site_role.phases import Confirmed, Finished, Revealed
from fl_protocol.signing.signed import SignedBody


def finish(state: Confirmed | Revealed, m10: bytes) -> tuple[Finished, ExchangeResult]:
    """Verify the result's statement. That the published sum has this digest is for the caller, who has the sum.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SIGNATURE_INVALID, CONTEXT_MISMATCH.
    """
    signed = read_message(SignedBody.decode, m10)
    check_signature(state.terms.coordinator_spki, StatementKind.M10, signed)
    result = read_message(ExchangeResult.decode, signed.body)
    if (result.h_manifest, result.h_survivors) != (state.terms.h_manifest, state.survivors.h_survivors):
        raise SecAggRefusedError(RefusalReason.CONTEXT_MISMATCH)
    return Finished(terms=state.terms, survivors=state.survivors, m10=m10), result
