"""What can be wrong with a key, a request or a certificate.

PkiError
├── PrivateKeyInvalidError          bytes that are no P-256 private key in PEM
├── CertificateRequestInvalidError  bytes that are no signed request, or of another kind of key
├── CertificateInvalidError         bytes that are no certificate, or one that says something else
└── SiteIdentityInvalidError        a certificate that does not name one site
"""

from __future__ import annotations

from fl_protocol.errors import ProtocolError


class PkiError(ProtocolError):
    """A key, a request or a certificate is not what it should be."""

    code = "pki-error"


class PrivateKeyInvalidError(PkiError):
    """Bytes are no P-256 private key in PEM."""

    code = "private-key-invalid"


class CertificateRequestInvalidError(PkiError):
    """Bytes are no signed certificate request over a P-256 key."""

    code = "certificate-request-invalid"


class CertificateInvalidError(PkiError):
    """Bytes are no certificate, or the certificate is not issued, valid or used as it should be."""

    code = "certificate-invalid"


class SiteIdentityInvalidError(PkiError):
    """A certificate does not name exactly one site."""

    code = "site-identity-invalid"
