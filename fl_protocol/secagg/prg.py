"""The mask generator: AES-256 in counter mode over zeros, readable from any byte offset.

A mask key is used for one stream only, so that the counter starts at zero; byte ``k`` of the stream is byte
``k mod 16`` of ``AES-256(key, k div 16)``, the block number big-endian (NIST SP 800-38A, 6.5). Knows no ring, no peer.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl_protocol.errors import ProtocolError

KEY_BYTES = 32
BLOCK_BYTES = 16


class MaskKeyInvalidError(ProtocolError):
    """A mask key is not 32 bytes long."""

    code = "mask-key-invalid"


class Keystream:
    """The stream of one key from one offset on. Invariant: consecutive reads are consecutive stretches."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes, *, offset: int = 0, initial_counter: int = 0) -> None:
        """Stand at byte ``offset`` of the stream.

        Args:
            key: 32 bytes.
            offset: where to start, in bytes.
            initial_counter: the 128-bit number of the first block; always zero for masks.

        Raises:
            MaskKeyInvalidError: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise MaskKeyInvalidError("a mask key is 32 bytes", n_bytes=len(key))
        block, skipped = divmod(offset, BLOCK_BYTES)
        counter = (initial_counter + block) % (1 << 128)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(BLOCK_BYTES, "big"))).encryptor()
        if skipped:
            self._cipher.update(bytes(skipped))

    def read_into(self, zeros: memoryview, out: memoryview) -> None:
        """Write the next bytes of the stream into ``out``; ``zeros`` is all zeros and of the same length."""
        self._cipher.update_into(zeros, out)

    def read(self, n_bytes: int) -> bytes:
        """The next ``n_bytes`` of the stream."""
        return self._cipher.update(bytes(n_bytes))
