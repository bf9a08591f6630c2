"""M7, a site's word on who survived; M9, the one share it reveals of each peer; M10, the result. M8 is a list of M7."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, text_from_bytes, unpack
from fl_protocol.secagg.messages.statements import MessageInvalidError, site_field, sized_field


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The body of M7. Invariant: a site signs one survivor set an exchange, never a second."""

    site: SiteId
    h_survivors: bytes

    def encode(self) -> bytes:
        """``pack(site, hU3)``."""
        return pack(self.site.encode(), self.h_survivors)

    @classmethod
    def decode(cls, data: bytes) -> Confirmation:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        site, h_survivors = unpack(data, 2)
        return cls(site=site_field(site), h_survivors=sized_field(h_survivors, 32))


class ShareKind(StrEnum):
    """Which of a peer's two secrets a revealed share belongs to."""

    SELF_MASK = "b"
    """Of a survivor: takes its self-mask away."""
    MASK_KEY = "r"
    """Of a site that dealt shares and did not survive: takes its pair masks away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedShare:
    """The one share that is revealed of one peer."""

    peer: SiteId
    kind: ShareKind
    share: bytes = field(repr=False)

    def encode(self) -> bytes:
        """``pack(peer, kind, share)``."""
        return pack(self.peer.encode(), self.kind.encode(), self.share)

    @classmethod
    def decode(cls, data: bytes) -> RevealedShare:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        peer, kind_field, share = unpack(data, 3)
        kind = text_from_bytes(kind_field)
        if kind not in set(ShareKind):
            raise MessageInvalidError("a share is of one kind or the other", kind=kind[:8])
        return cls(peer=site_field(peer), kind=ShareKind(kind), share=sized_field(share, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """The body of M9: one share of every site of U2, in the order of their names."""

    site: SiteId
    h_survivors: bytes
    shares: tuple[RevealedShare, ...]

    def encode(self) -> bytes:
        """``pack(site, hU3, pack(revealed share, ...))``."""
        return pack(self.site.encode(), self.h_survivors, pack(*(share.encode() for share in self.shares)))

    @classmethod
    def decode(cls, data: bytes) -> Reveal:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        site, h_survivors, shares = unpack(data, 3)
        return cls(
            site=site_field(site),
            h_survivors=sized_field(h_survivors, 32),
            shares=tuple(RevealedShare.decode(share) for share in unpack(shares)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeResult:
    """The body of M10, signed by the coordinator.

    Attributes:
        h_manifest: hM, the exchange.
        h_survivors: hU3, whose sum it is.
        result_sha256: SHA-256 of the sum's wire image.
        transcript_root: root of the tree over every message of the exchange.
    """

    h_manifest: bytes
    h_survivors: bytes
    result_sha256: bytes
    transcript_root: bytes

    def encode(self) -> bytes:
        """``pack(hM, hU3, result_sha256, transcript_root)``."""
        return pack(self.h_manifest, self.h_survivors, self.result_sha256, self.transcript_root)

    @classmethod
    def decode(cls, data: bytes) -> ExchangeResult:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, MessageInvalidError."""
        h_manifest, h_survivors, result_sha256, transcript_root = (sized_field(item, 32) for item in unpack(data, 4))
        return cls(
            h_manifest=h_manifest,
            h_survivors=h_survivors,
            result_sha256=result_sha256,
            transcript_root=transcript_root,
        )
