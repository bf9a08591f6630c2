"""M1, the keys that a site makes for one exchange. M2 is the list of the cohort's M1."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64, u64_from_bytes, unpack
from fl_protocol.secagg.messages.statements import MessageInvalidError, site_field, sized_field

_N_FIELDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHeads:
    """Two audit logs as a site knows them; all zero where there is none.

    Attributes:
        size: rows of the site's own log.
        head: root of that log, 32 bytes.
        seen_size: rows of the last coordinator log that the site saw.
        seen_head: root of that log, 32 bytes.
    """

    size: int = 0
    head: bytes = bytes(32)
    seen_size: int = 0
    seen_head: bytes = bytes(32)

    def __post_init__(self) -> None:
        if not (0 <= self.size < 1 << 64 and 0 <= self.seen_size < 1 << 64):
            raise MessageInvalidError("a log size is 0 .. 2**64 - 1", size=self.size, seen_size=self.seen_size)
        sized_field(self.head, 32)
        sized_field(self.seen_head, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAdvertisement:
    """The body of M1.

    Attributes:
        site: who speaks.
        h_manifest: hM, the exchange that is meant.
        mask_key: E, the X25519 public key that pair masks come from.
        transport_key: C, the X25519 public key that shares are sealed to.
        b_commitment: beta, the commitment to the self-mask secret.
        spki_der: the site's signing key; its digest is what others approved.
        heads: the audit logs as this site knows them.
    """

    site: SiteId
    h_manifest: bytes
    mask_key: bytes
    transport_key: bytes
    b_commitment: bytes
    spki_der: bytes
    heads: AuditHeads

    def encode(self) -> bytes:
        """``pack(site, hM, E, C, beta, spki, u64(size), head, u64(seen_size), seen_head)``."""
        return pack(
            self.site.encode(),
            self.h_manifest,
            self.mask_key,
            self.transport_key,
            self.b_commitment,
            self.spki_der,
            u64(self.heads.size),
            self.heads.head,
            u64(self.heads.seen_size),
            self.heads.seen_head,
        )

    @classmethod
    def decode(cls, data: bytes) -> KeyAdvertisement:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        field = unpack(data, _N_FIELDS)
        return cls(
            site=site_field(field[0]),
            h_manifest=sized_field(field[1], 32),
            mask_key=sized_field(field[2], 32),
            transport_key=sized_field(field[3], 32),
            b_commitment=sized_field(field[4], 32),
            spki_der=field[5],
            heads=AuditHeads(
                size=u64_from_bytes(field[6]),
                head=sized_field(field[7], 32),
                seen_size=u64_from_bytes(field[8]),
                seen_head=sized_field(field[9], 32),
            ),
        )
