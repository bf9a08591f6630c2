from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.signing.keys import EcdsaSigner, SignatureInvalidError, verify_signature
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

SIGNER = EcdsaSigner(ec.derive_private_key(11, ec.SECP256R1()))


def test_signed_body_of_its_kind_gives_its_body() -> None:
    signed = sign_body(SIGNER, "SA1/sig/M1", b"body")
    assert verify_body(SIGNER.spki_der, "SA1/sig/M1", SignedBody.decode(signed.encode())) == b"body"


def test_signature_covers_kind_and_body_behind_their_lengths() -> None:
    signed = sign_body(SIGNER, "SA1/sig/M1", b"body")
    message = b"\x00\x00\x00\x0aSA1/sig/M1\x00\x00\x00\x04body"
    verify_signature(SIGNER.spki_der, message, signed.signature)


@pytest.mark.parametrize(("kind", "body"), [("SA1/sig/M3", b"body"), ("SA1/sig/M1", b"bodY"), ("SA1/sig/M1b", b"ody")])
def test_signed_body_as_another_statement_is_refused(kind: str, body: bytes) -> None:
    signed = sign_body(SIGNER, "SA1/sig/M1", b"body")
    with pytest.raises(SignatureInvalidError):
        verify_body(SIGNER.spki_der, kind, SignedBody(body=body, signature=signed.signature))
