from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fl_protocol.signing.keys import (
    EcdsaSigner,
    SignatureInvalidError,
    SigningKeyInvalidError,
    public_key_from_spki,
    spki_fingerprint,
    verify_signature,
)

# RFC 6979, A.2.5: ECDSA, 256 bits (prime field), with SHA-256.
RFC6979_KEY = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
RFC6979_SIGNATURES = {
    b"sample": (
        0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716,
        0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8,
    ),
    b"test": (
        0xF1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367,
        0x019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083,
    ),
}


def signer() -> EcdsaSigner:
    return EcdsaSigner(ec.derive_private_key(RFC6979_KEY, ec.SECP256R1()))


@pytest.mark.parametrize("message", sorted(RFC6979_SIGNATURES))
def test_signature_of_a_message_is_that_of_rfc_6979(message: bytes) -> None:
    assert decode_dss_signature(signer().sign(message)) == RFC6979_SIGNATURES[message]


def test_signature_over_its_message_is_accepted() -> None:
    verify_signature(signer().spki_der, b"sample", signer().sign(b"sample"))


@pytest.mark.parametrize(
    ("message", "flip"), [(b"samplE", None), (b"sample ", None), (b"", None), (b"sample", 0), (b"sample", -1)]
)
def test_signature_over_other_bytes_is_refused(message: bytes, flip: int | None) -> None:
    signature = bytearray(signer().sign(b"sample"))
    if flip is not None:
        signature[flip] ^= 1
    with pytest.raises(SignatureInvalidError):
        verify_signature(signer().spki_der, message, bytes(signature))


def test_signature_of_another_key_is_refused_and_the_expected_key_named() -> None:
    other = EcdsaSigner(ec.derive_private_key(7, ec.SECP256R1()))
    with pytest.raises(SignatureInvalidError) as caught:
        verify_signature(signer().spki_der, b"sample", other.sign(b"sample"))
    assert caught.value.facts["key_sha256"] == hashlib.sha256(signer().spki_der).hexdigest()


def test_fingerprint_is_sha256_of_the_spki() -> None:
    assert spki_fingerprint(signer().spki_der) == hashlib.sha256(signer().spki_der).hexdigest()


def test_signer_on_another_curve_is_refused() -> None:
    with pytest.raises(SigningKeyInvalidError):
        EcdsaSigner(ec.derive_private_key(7, ec.SECP384R1()))


def _spki(key: ec.EllipticCurvePublicKey | x25519.X25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "spki",
    [
        b"",
        b"not a key",
        _spki(ec.derive_private_key(7, ec.SECP384R1()).public_key()),
        _spki(x25519.X25519PrivateKey.from_private_bytes(b"\x07" * 32).public_key()),
    ],
)
def test_public_key_of_another_kind_is_refused(spki: bytes) -> None:
    with pytest.raises(SigningKeyInvalidError):
        public_key_from_spki(spki)


def test_signer_repr_shows_no_private_number() -> None:
    assert str(RFC6979_KEY) not in repr(signer())
    assert f"{RFC6979_KEY:x}" not in repr(signer())
