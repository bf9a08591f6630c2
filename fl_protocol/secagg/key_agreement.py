"""Key pairs, agreed secrets and derived keys: X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869).

Every derivation is bound by its salt to the exchange (hM before the cohort is known, hU2 afterwards) and by its info to
its purpose and its pair, so that no key of one exchange is ever a key of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import SiteId
from fl_protocol.packing import pack
from fl_protocol.secagg import shamir

KEY_BYTES = 32


class KeyAgreementError(ProtocolError):
    """A public key with which no secret can be agreed: of another length, or of small order."""

    code = "key-agreement-failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """An X25519 key pair, both halves as the 32 bytes of RFC 7748."""

    private: bytes = field(repr=False)
    public: bytes


def hkdf(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, extract and expand, 32 bytes."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def hkdf_expand(key: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, expand only, 32 bytes, from a key that is uniform already."""
    return HKDFExpand(algorithm=hashes.SHA256(), length=KEY_BYTES, info=info).derive(key)


def key_pair_from_private(private: bytes) -> KeyPair:
    """The key pair of 32 private bytes; X25519 clamps them itself.

    Raises:
        KeyAgreementError: the bytes are not 32.
    """
    if len(private) != KEY_BYTES:
        raise KeyAgreementError("a private key is 32 bytes", n_bytes=len(private))
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return KeyPair(private=private, public=public)


def agree(private: bytes, public: bytes) -> bytes:
    """X25519(private, public), 32 bytes.

    Raises:
        KeyAgreementError: the public key is not 32 bytes or of small order (the result would be known to anybody).
    """
    if len(public) != KEY_BYTES:
        raise KeyAgreementError("a public key is 32 bytes", n_bytes=len(public))
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise KeyAgreementError("the public key gives no secret") from error


def mask_key_pair(rho: int, *, site: SiteId, h_manifest: bytes) -> KeyPair:
    """The pair (e_i, E_i): derived from rho_i, so that t shares of rho_i restore it when the site vanishes."""
    seed = hkdf(shamir.element_to_bytes(rho), salt=h_manifest, info=pack(b"SA1/rho", site.encode()))
    return key_pair_from_private(hkdf_expand(seed, pack(b"SA1/x25519")))


def pair_seed(private: bytes, public: bytes, *, sites: tuple[SiteId, SiteId], h_sharers: bytes) -> bytes:
    """s_ij: what two sites share; the same from either side. Raises KeyAgreementError."""
    first, second = sorted(sites)
    info = pack(b"SA1/pair", first.encode(), second.encode())
    return hkdf(agree(private, public), salt=h_sharers, info=info)


def self_seed(b: int, *, site: SiteId, h_sharers: bytes) -> bytes:
    """The seed of the mask that only the site itself adds, and that survivors reveal for survivors."""
    return hkdf(shamir.element_to_bytes(b), salt=h_sharers, info=pack(b"SA1/self", site.encode()))
