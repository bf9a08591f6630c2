from __future__ import annotations

import base64
import hashlib

import pytest

from coordinator.ca.enrolment import (
    EnrolmentCode,
    certificate_pin,
    enrolment_code_from_text,
    possession_message,
    verify_possession,
)
from coordinator.ca.errors import EnrolmentCodeInvalidError
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.keys import EcdsaSigner, SignatureInvalidError

SECRET = bytes(range(20))
CERTIFICATE = b"a certificate"


def test_code_is_base_32_of_the_secret_and_the_pin_of_the_certificate() -> None:
    code = EnrolmentCode(secret=SECRET, certificate_pin=certificate_pin(CERTIFICATE))
    expected = f"WR1-{base64.b32encode(SECRET).decode()}-{hashlib.sha256(CERTIFICATE).hexdigest()[:32]}"
    assert code.text() == expected
    assert enrolment_code_from_text(f"  {expected.lower()} ") == code
    assert code.secret_sha256 == hashlib.sha256(SECRET).hexdigest()
    assert "secret" not in repr(code)


@pytest.mark.parametrize("text", ["", "WR1", "WR2-" + "A" * 32 + "-" + "0" * 32, "WR1-" + "A" * 31 + "-" + "0" * 32])
def test_text_of_another_form_is_no_code(text: str) -> None:
    with pytest.raises(EnrolmentCodeInvalidError):
        enrolment_code_from_text(text)


def test_possession_is_bound_to_the_code_and_to_the_request() -> None:
    signer = EcdsaSigner(generate_private_key())
    signature = signer.sign(possession_message(SECRET, b"csr"))
    verify_possession(secret=SECRET, csr_der=b"csr", signing_spki_der=signer.spki_der, signature=signature)
    for secret, csr in ((SECRET[::-1], b"csr"), (SECRET, b"other")):
        with pytest.raises(SignatureInvalidError):
            verify_possession(secret=secret, csr_der=csr, signing_spki_der=signer.spki_der, signature=signature)


def test_possession_message_has_the_documented_bytes() -> None:
    inner = b"\x00\x00\x00\x20" + hashlib.sha256(SECRET).digest() + b"\x00\x00\x00\x03csr"
    expected = b"\x00\x00\x00\x10WR/sig/enrolment" + len(inner).to_bytes(4, "big") + inner
    assert possession_message(SECRET, b"csr") == expected
