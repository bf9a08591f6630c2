from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fl_protocol.pki.csr import make_csr, read_csr
from fl_protocol.pki.errors import CertificateRequestInvalidError, PrivateKeyInvalidError
from fl_protocol.pki.keys import (
    generate_private_key,
    key_fingerprint,
    pem_from_private_key,
    private_key_from_pem,
    spki_from_private_key,
    spki_from_public_key,
)

KEY = ec.derive_private_key(5, ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_generated_keys_are_on_p256_and_differ() -> None:
    first, second = generate_private_key(), generate_private_key()
    assert first.curve.name == "secp256r1"
    assert spki_from_private_key(first) != spki_from_private_key(second)


def test_key_read_from_its_pem_is_the_same() -> None:
    assert private_key_from_pem(pem_from_private_key(KEY)).private_numbers() == KEY.private_numbers()


def test_fingerprint_is_sha256_of_the_public_half() -> None:
    spki = spki_from_public_key(KEY.public_key())
    assert spki == spki_from_private_key(KEY)
    assert key_fingerprint(KEY.public_key()) == hashlib.sha256(spki).hexdigest()


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"nonsense",
        pem_of(KEY)[:-40],
        pem_of(KEY, b"secret"),
        pem_of(ec.derive_private_key(5, ec.SECP384R1())),
        pem_of(ed25519.Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)),
        KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_pem_that_is_no_plain_p256_key_is_refused(pem: bytes) -> None:
    with pytest.raises(PrivateKeyInvalidError):
        private_key_from_pem(pem)


def test_request_gives_the_key_that_signed_it_and_names_nobody() -> None:
    der = make_csr(KEY)
    assert read_csr(der).public_numbers() == KEY.public_key().public_numbers()
    request = x509.load_der_x509_csr(der)
    assert list(request.subject) == []
    assert list(request.extensions) == []


def test_request_with_an_altered_key_or_signature_is_refused() -> None:
    der = make_csr(KEY)
    other = spki_from_private_key(ec.derive_private_key(6, ec.SECP256R1()))
    for altered in (der.replace(spki_from_private_key(KEY), other), der[:-1] + bytes([der[-1] ^ 1])):
        assert altered != der
        with pytest.raises(CertificateRequestInvalidError):
            read_csr(altered)


def _csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("der", [b"", b"x" * 100, b"0" * 9000, make_csr(KEY)[:-5]])
def test_request_that_is_malformed_is_refused(der: bytes) -> None:
    with pytest.raises(CertificateRequestInvalidError):
        read_csr(der)


def test_request_for_another_curve_is_refused() -> None:
    with pytest.raises(CertificateRequestInvalidError):
        read_csr(_csr(ec.derive_private_key(5, ec.SECP384R1())))
