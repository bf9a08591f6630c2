"""The coordinator's receipt for a masked input: what it must say before this site believes that the upload arrived."""

from __future__ import annotations

import hashlib

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId
from fl_protocol.packing import u64, unpack
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.context import ExchangeContext
from site_agent.errors import ReceiptInvalidError

RECEIPT_KIND = "WR/sig/receipt"
_N_FIELDS = 6


def verify_receipt(
    receipt: SignedBody,
    *,
    coordinator_spki: bytes,
    site_id: SiteId,
    context: ExchangeContext,
    header: bytes,
    n_bytes: int,
) -> None:
    """Check the signature, and that the receipt is for exactly this upload.

    The body is ``pack(context, site, sha256(M5), u64(n_bytes), chunk_root, instant)``.

    Raises:
        ReceiptInvalidError: it is not the pinned coordinator's, or is for something else.
    """
    try:
        fields = unpack(verify_body(coordinator_spki, RECEIPT_KIND, receipt), _N_FIELDS)
    except ProtocolError as error:
        raise ReceiptInvalidError("the receipt is not the coordinator's", cause=error.code) from error
    expected = (context.encode(), site_id.encode(), hashlib.sha256(header).digest(), u64(n_bytes))
    if fields[: len(expected)] != expected:
        raise ReceiptInvalidError("the receipt is for another upload", run_id=context.run_id)
