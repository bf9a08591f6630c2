"""M5, the header of a masked upload; the vector itself travels beside it. M6 is the list of the survivors' M5."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.packing import pack, u64, u64_from_bytes, unpack
from fl_protocol.secagg.messages.statements import site_field, sized_field


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadHeader:
    """The body of M5.

    Attributes:
        site: who uploads.
        h_sharers: hU2, among whom the masks cancel.
        chunk_root: root of the digest tree over the masked vector's chunks.
        n_bytes: the size of the vector.
    """

    site: SiteId
    h_sharers: bytes
    chunk_root: bytes
    n_bytes: int

    def encode(self) -> bytes:
        """``pack(site, hU2, chunk_root, u64(n_bytes))``."""
        return pack(self.site.encode(), self.h_sharers, self.chunk_root, u64(self.n_bytes))

    @classmethod
    def decode(cls, data: bytes) -> UploadHeader:
        """Read what ``encode`` wrote. Raises PackedBytesInvalidError, IdentifierInvalidError, MessageInvalidError."""
        site, h_sharers, chunk_root, n_bytes = unpack(data, 4)
        return cls(
            site=site_field(site),
            h_sharers=sized_field(h_sharers, 32),
            chunk_root=sized_field(chunk_root, 32),
            n_bytes=u64_from_bytes(n_bytes),
        )
