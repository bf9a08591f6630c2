"""M3, the shares that a dealer gives to everybody; M4, those that one holder receives; the complaint about a dealer."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, text_from_bytes, u32, u32_from_bytes, unpack
from fl_protocol.secagg.messages.statements import MessageInvalidError, site_field, sized_field
from fl_protocol.secagg.reasons import RefusalReason
from fl_protocol.secagg.sealing import OVERHEAD_BYTES
from fl_protocol.signing.signed import SignedBody

SEALED_BYTES = 64 + OVERHEAD_BYTES
COMMITMENT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareHeader:
    """The body that M3 signs.

    Attributes:
        site: the dealer.
        h_cohort: hU1, the cohort among which it shares.
        root: of the tree over the leaves, in the order of the holders' names.
        threshold: how many shares give its secrets back.
    """

    site: SiteId
    h_cohort: bytes
    root: bytes
    threshold: int

    def encode(self) -> bytes:
        """``pack(site, hU1, root, u32(threshold))``."""
        return pack(self.site.encode(), self.h_cohort, self.root, u32(self.threshold))

    @classmethod
    def decode(cls, data: bytes) -> ShareHeader:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        site, h_cohort, root, threshold = unpack(data, 4)
        return cls(
            site=site_field(site),
            h_cohort=sized_field(h_cohort, 32),
            root=sized_field(root, 32),
            threshold=u32_from_bytes(threshold),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLeaf:
    """What a dealer gives to one holder.

    Attributes:
        holder: to whom.
        ciphertext: both shares, sealed; empty where dealer and holder are one.
        commitment: kappa, the digests of both shares.
    """

    holder: SiteId
    ciphertext: bytes
    commitment: bytes

    def encode(self) -> bytes:
        """``pack(holder, ciphertext, commitment)``: a leaf of the dealer's tree."""
        return pack(self.holder.encode(), self.ciphertext, self.commitment)

    @classmethod
    def decode(cls, data: bytes) -> ShareLeaf:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        holder, ciphertext, commitment = unpack(data, 3)
        if ciphertext:
            sized_field(ciphertext, SEALED_BYTES)
        return cls(
            holder=site_field(holder), ciphertext=ciphertext, commitment=sized_field(commitment, COMMITMENT_BYTES)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareKeys:
    """M3: the signed header and every leaf, in the order of the holders' names."""

    header: SignedBody
    leaves: tuple[ShareLeaf, ...]

    def encode(self) -> bytes:
        """``pack(header, leaf, leaf, ...)``."""
        return pack(self.header.encode(), *(leaf.encode() for leaf in self.leaves))

    @classmethod
    def decode(cls, data: bytes) -> ShareKeys:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        header, leaves = _first_and_rest(data)
        return cls(header=SignedBody.decode(header), leaves=tuple(ShareLeaf.decode(leaf) for leaf in leaves))


@dataclass(frozen=True, slots=True, kw_only=True)
class DealtShare:
    """One dealer's gift as a holder receives it: signed header, leaf, and the path that ties them together."""

    header: SignedBody
    leaf: ShareLeaf
    path: tuple[bytes, ...]

    def encode(self) -> bytes:
        """``pack(header, leaf, pack(sibling, ...))``."""
        return pack(self.header.encode(), self.leaf.encode(), pack(*self.path))

    @classmethod
    def decode(cls, data: bytes) -> DealtShare:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        header, leaf, path = unpack(data, 3)
        return cls(
            header=SignedBody.decode(header),
            leaf=ShareLeaf.decode(leaf),
            path=tuple(sized_field(sibling, 32) for sibling in unpack(path)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DealtShares:
    """M4: what one holder receives from every dealer, in the order of the dealers' names, itself included."""

    entries: tuple[DealtShare, ...]

    def encode(self) -> bytes:
        """``pack(dealt share, ...)``."""
        return pack(*(entry.encode() for entry in self.entries))

    @classmethod
    def decode(cls, data: bytes) -> DealtShares:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        return cls(entries=tuple(DealtShare.decode(entry) for entry in unpack(data)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """The body of a complaint: this dealer's signed leaf for me does not open, or not to what it committed to.

    Safety: it proves nothing to others, on purpose. The proof would be the transport private key, and a coordinator
    that had meanwhile made others mask in this cohort could then read every share that was sealed to it.
    """

    site: SiteId
    h_cohort: bytes
    dealer: SiteId
    reason: RefusalReason

    def encode(self) -> bytes:
        """``pack(site, hU1, dealer, reason)``."""
        return pack(self.site.encode(), self.h_cohort, self.dealer.encode(), self.reason.encode())

    @classmethod
    def decode(cls, data: bytes) -> Complaint:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        site, h_cohort, dealer, reason_field = unpack(data, 4)
        reason = text_from_bytes(reason_field)
        if reason not in set(RefusalReason):
            raise MessageInvalidError("a complaint has a known reason", reason=reason[:80])
        return cls(
            site=site_field(site),
            h_cohort=sized_field(h_cohort, 32),
            dealer=site_field(dealer),
            reason=RefusalReason(reason),
        )


def _first_and_rest(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    fields = unpack(data)
    if not fields:
        raise MessageInvalidError("a message has at least one field")
    return fields[0], fields[1:]
