"""The coordinator's signed word which roots its sites believe: how a root is replaced without an outage.

Signed by the coordinator's signing key, which sites pinned at enrolment, and brought over a connection that the present
roots protect. A later version replaces an earlier one, whole; a site never goes back to an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.errors import ProtocolError
from fl_protocol.packing import PackedBytesInvalidError, pack, text_from_bytes, u64, u64_from_bytes, unpack
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

SIGNATURE_KIND = "WR/sig/trusted-roots"
_MAX_ROOTS = 8


class TrustedRootsInvalidError(ProtocolError):
    """Bytes are no list of roots."""

    code = "trusted-roots-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedRoots:
    """The roots of a federation.

    Attributes:
        origin: whose.
        version: rises with every change.
        roots: certificates, DER, one to eight.
    """

    origin: str
    version: int
    roots: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.roots) <= _MAX_ROOTS or not 0 <= self.version < 2**63:
            raise TrustedRootsInvalidError("a list names one to eight roots", n_roots=len(self.roots))

    def encode(self) -> bytes:
        """``pack(origin, u64(version), root, root, ...)``."""
        return pack(self.origin.encode(), u64(self.version), *self.roots)

    @classmethod
    def decode(cls, data: bytes) -> TrustedRoots:
        """Read what ``encode`` wrote. Raises TrustedRootsInvalidError."""
        try:
            fields = unpack(data)
            if len(fields) < 3:
                raise TrustedRootsInvalidError("a list of roots has an origin, a version and roots")
            origin, version, *roots = fields
            return cls(origin=text_from_bytes(origin), version=u64_from_bytes(version), roots=tuple(roots))
        except PackedBytesInvalidError as error:
            raise TrustedRootsInvalidError("the bytes are no list of roots") from error


def sign_roots(signer: Signer, roots: TrustedRoots) -> SignedBody:
    """The list under the coordinator's signing key."""
    return sign_body(signer, SIGNATURE_KIND, roots.encode())


def verify_roots(spki_der: bytes, signed: SignedBody) -> TrustedRoots:
    """The list, once its signature is known to be that key's.

    Raises:
        SigningKeyInvalidError, SignatureInvalidError: it is not.
        TrustedRootsInvalidError: the body is no list of roots.
    """
    return TrustedRoots.decode(verify_body(spki_der, SIGNATURE_KIND, signed))
