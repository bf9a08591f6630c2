from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fl_protocol.audit.checkpoint import Checkpoint, CheckpointInvalidError, sign_checkpoint, verify_checkpoint
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import SignatureInvalidError
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.testing.entropy import seeded_signer

SIGNER = seeded_signer("log")
CHECKPOINT = Checkpoint(
    origin="site:charite", size=12, head=Sha256Hex("cd" * 32), at=datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
)


def test_signed_checkpoint_gives_the_checkpoint() -> None:
    signed = sign_checkpoint(SIGNER, CHECKPOINT)
    expected = '{"at":"2026-05-04T03:02:01.000000Z","head":"' + "cd" * 32 + '","origin":"site:charite","size":12}'
    assert signed.body == expected.encode()
    assert verify_checkpoint(SIGNER.spki_der, signed) == CHECKPOINT
    assert CHECKPOINT.tree_head.size == 12


def test_checkpoint_of_another_key_or_kind_is_refused() -> None:
    with pytest.raises(SignatureInvalidError):
        verify_checkpoint(seeded_signer("other").spki_der, sign_checkpoint(SIGNER, CHECKPOINT))
    with pytest.raises(SignatureInvalidError):
        verify_checkpoint(SIGNER.spki_der, sign_body(SIGNER, "WR/sig/receipt", CHECKPOINT.encode()))


def test_checkpoint_with_an_altered_size_is_refused() -> None:
    signed = sign_checkpoint(SIGNER, CHECKPOINT)
    altered = SignedBody(body=signed.body.replace(b"12}", b"13}"), signature=signed.signature)
    with pytest.raises(SignatureInvalidError):
        verify_checkpoint(SIGNER.spki_der, altered)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size":12', b'"size":-1'),
        (b'"size":12', b'"size":true'),
        (b'"size":12', b'"size":"12"'),
        (b'"size":12', b'"size":1152921504606846976'),
        (b'"size":12', b'"size":' + b"[" * 100_000),
        (b'"size":12', b'"size": 12'),
        (b'"size":12', b'"size":12,"x":1'),
        (b"site:charite", b"site:\\ud800"),
        (b"cdcd", b"CDCD"),
        (b".000000Z", b"Z"),
        (b"}", b""),
    ],
)
def test_signed_body_that_is_no_checkpoint_is_refused(old: bytes, new: bytes) -> None:
    body = CHECKPOINT.encode().replace(old, new)
    assert body != CHECKPOINT.encode()
    with pytest.raises(CheckpointInvalidError):
        verify_checkpoint(SIGNER.spki_der, sign_body(SIGNER, "WR/sig/checkpoint", body))
