"""What an uploaded vector is called in the blob store, computed once more from the words of decision 0026."""

from __future__ import annotations

import hashlib

MIB = 1 << 20


def blob_name(data: bytes) -> str:
    """As decision 0026 spells it, over the tree of RFC 6962, section 2.1, written out once more."""

    def head(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << ((len(leaves) - 1).bit_length() - 1)
        return hashlib.sha256(b"\x01" + head(leaves[:half]) + head(leaves[half:])).digest()

    root = head([hashlib.sha256(b"\x00" + data[at : at + MIB]).digest() for at in range(0, len(data), MIB)])
    fields = (b"wardround/blob/chunk-tree/v1", len(data).to_bytes(8, "big"), root)
    return hashlib.sha256(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).hexdigest()
