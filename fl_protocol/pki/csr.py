"""Certificate requests: a site proves that it holds a TLS key; the authority decides whose certificate it gets.

A request names nobody. The key never leaves the site, and the site's name comes from its invitation.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.pki.errors import CertificateRequestInvalidError

_MAX_BYTES = 8192


def make_csr(private_key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS #10 request in DER with an empty subject, signed by the key that it is for."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(private_key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def read_csr(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request, once it is known that the sender holds it. What the request says besides is not read.

    Raises:
        CertificateRequestInvalidError: it is malformed, too long, not signed by its own key, or not over a P-256 key.
    """
    if len(der) > _MAX_BYTES:
        raise CertificateRequestInvalidError("a certificate request is shorter", n_bytes=len(der))
    try:
        request = x509.load_der_x509_csr(der)
        is_signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRequestInvalidError("the bytes are no certificate request in DER") from error
    if not is_signed:
        raise CertificateRequestInvalidError("the request is not signed by the key that it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRequestInvalidError("the request is not for a key on curve P-256")
    return key
