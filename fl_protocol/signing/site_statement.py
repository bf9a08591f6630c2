"""What a site says of itself under its signing key, one after the other: it started, is there, asks for a renewal.

Each statement has the number after the last one and names the digest of the last one, so that the statements of a site
are one chain. Two copies of one state folder sign two chains with the same beginning: whoever sees both sees the fork.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, SiteId, site_id_from_text
from fl_protocol.packing import PackedBytesInvalidError, pack, text_from_bytes, u64, u64_from_bytes, unpack
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body

SIGNATURE_KIND = "WR/sig/site-statement"
NO_STATEMENT = Sha256Hex("0" * 64)
"""``previous_sha256`` of a site's first statement."""
NONCE_BYTES = 16
_DIGEST_BYTES = 32
_MAX_COUNTER = 2**53 - 1


class SiteStatementInvalidError(ProtocolError):
    """Bytes are no statement of a site, or say what none may say."""

    code = "site-statement-invalid"


class SiteStatementKind(StrEnum):
    """What a site says."""

    STARTED = "started"
    PRESENT = "present"
    RENEW = "renew"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatement:
    """One statement.

    Attributes:
        site_id: who speaks.
        kind: what is said.
        counter: from 1, one more than the site's last statement.
        previous_sha256: the digest of the last one; ``NO_STATEMENT`` where there was none.
        nonce: 16 random bytes: two copies never make the same statement.
        csr_sha256: of the certificate request; None unless a renewal is asked for.
    """

    site_id: SiteId
    kind: SiteStatementKind
    counter: int
    previous_sha256: Sha256Hex
    nonce: bytes
    csr_sha256: Sha256Hex | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.counter <= _MAX_COUNTER:
            raise SiteStatementInvalidError("a statement's number is 1 to 2**53 - 1", counter=self.counter)
        if len(self.nonce) != NONCE_BYTES:
            raise SiteStatementInvalidError("a statement carries 16 random bytes", n_bytes=len(self.nonce))
        if (self.csr_sha256 is not None) != (self.kind is SiteStatementKind.RENEW):
            raise SiteStatementInvalidError("a renewal names its request, and nothing else does", kind=self.kind)

    @property
    def sha256(self) -> Sha256Hex:
        """The digest by which the next statement names this one."""
        return Sha256Hex(hashlib.sha256(self.encode()).hexdigest())

    def encode(self) -> bytes:
        """``pack(site, kind, u64(counter), previous, nonce, csr digest or nothing)``."""
        csr = b"" if self.csr_sha256 is None else bytes.fromhex(self.csr_sha256)
        return pack(
            self.site_id.encode(),
            self.kind.encode(),
            u64(self.counter),
            bytes.fromhex(self.previous_sha256),
            self.nonce,
            csr,
        )

    @classmethod
    def decode(cls, data: bytes) -> SiteStatement:
        """Read what ``encode`` wrote.

        Raises:
            SiteStatementInvalidError: the bytes are no statement.
        """
        try:
            site, kind, counter, previous, nonce, csr = unpack(data, 6)
            if len(previous) != _DIGEST_BYTES or len(csr) not in (0, _DIGEST_BYTES):
                raise SiteStatementInvalidError("a digest has 32 bytes")
            return cls(
                site_id=site_id_from_text(text_from_bytes(site)),
                kind=SiteStatementKind(text_from_bytes(kind)),
                counter=u64_from_bytes(counter),
                previous_sha256=Sha256Hex(previous.hex()),
                nonce=nonce,
                csr_sha256=Sha256Hex(csr.hex()) if csr else None,
            )
        except (PackedBytesInvalidError, IdentifierInvalidError, ValueError) as error:
            raise SiteStatementInvalidError("the bytes are no statement of a site") from error


def sign_site_statement(signer: Signer, statement: SiteStatement) -> SignedBody:
    """The statement under the site's signing key."""
    return sign_body(signer, SIGNATURE_KIND, statement.encode())


def verify_site_statement(spki_der: bytes, signed: SignedBody) -> SiteStatement:
    """The statement, once its signature is known to be that key's.

    Raises:
        SigningKeyInvalidError, SignatureInvalidError: it is not.
        SiteStatementInvalidError: the body is no statement.
    """
    return SiteStatement.decode(verify_body(spki_der, SIGNATURE_KIND, signed))
