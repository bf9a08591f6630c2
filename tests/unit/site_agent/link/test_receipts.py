"""A receipt proves one upload, and only the pinned coordinator gives it."""

from __future__ import annotations

import hashlib

import pytest

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.federation import RUN_ID
from site_agent.errors import ReceiptInvalidError
from site_agent.link.receipts import RECEIPT_KIND, verify_receipt

COORDINATOR = seeded_signer("coordinator")
CONTEXT = ExchangeContext(run_id=RUN_ID, round_index=0, round_attempt=0, exchange_index=0, exchange_attempt=0)
HEADER = b"the signed header"


def receipt(
    *, header: bytes = HEADER, n_bytes: int = 36, site: bytes = b"alpha", signer: str = "coordinator", kind: str = ""
) -> SignedBody:
    body = pack(
        CONTEXT.encode(), site, hashlib.sha256(header).digest(), u64(n_bytes), bytes(32), b"2026-01-02T03:04:05Z"
    )
    return sign_body(seeded_signer(signer), kind or RECEIPT_KIND, body)


def verify(signed: SignedBody) -> None:
    verify_receipt(
        signed,
        coordinator_spki=COORDINATOR.spki_der,
        site_id=SiteId("alpha"),
        context=CONTEXT,
        header=HEADER,
        n_bytes=36,
    )


def test_receipt_for_this_upload_is_accepted() -> None:
    verify(receipt())


@pytest.mark.parametrize(
    "wrong",
    [
        receipt(header=b"another header"),
        receipt(n_bytes=35),
        receipt(site=b"beta"),
        receipt(signer="an impostor"),
        receipt(kind="WR/sig/ack"),
        sign_body(COORDINATOR, RECEIPT_KIND, pack(b"short")),
    ],
)
def test_receipt_for_anything_else_is_refused(wrong: SignedBody) -> None:
    with pytest.raises(ReceiptInvalidError):
        verify(wrong)
