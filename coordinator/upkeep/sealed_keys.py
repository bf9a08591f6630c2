"""Private files under a passphrase: scrypt (RFC 7914) to a key, AES-256-GCM over all of them at once.

``pack("WRK1", u32(log2 n), u32(r), u32(p), salt, nonce, ciphertext)``; the additional data is the packed header before
the ciphertext, the plaintext ``pack(name, content, name, content, ...)``. Safety: what is sealed is every key of the
coordinator. Whoever has the file may guess the passphrase; each guess costs 128 MiB and about a third of a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from coordinator.upkeep.errors import BackupUnreadableError
from fl_protocol.packing import PackedBytesInvalidError, pack, text_from_bytes, u32, u32_from_bytes, unpack

MIN_PASSPHRASE_BYTES = 12
_MAGIC = b"WRK1"
_LOG_N, _R, _P = 17, 8, 1
_MAX_LOG_N = 20
_SALT_BYTES, _NONCE_BYTES = 16, 12


def seal_files(files: Mapping[str, bytes], passphrase: bytes) -> bytes:
    """The sealed bytes.

    Raises:
        BackupUnreadableError: the passphrase is too short to protect anything.
    """
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise BackupUnreadableError(
            "the passphrase is too short; keep a random one in its file", min_bytes=MIN_PASSPHRASE_BYTES
        )
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    header = (_MAGIC, u32(_LOG_N), u32(_R), u32(_P), salt, nonce)
    plain = pack(*(part for name in sorted(files) for part in (name.encode(), files[name])))
    sealed = AESGCM(_derive(passphrase, salt, log_n=_LOG_N, r=_R, p=_P)).encrypt(nonce, plain, pack(*header))
    return pack(*header, sealed)


def open_files(sealed: bytes, passphrase: bytes) -> dict[str, bytes]:
    """What was sealed.

    Raises:
        BackupUnreadableError: it is malformed, was altered, or the passphrase is another.
    """
    try:
        magic, log_n, r, p, salt, nonce, ciphertext = unpack(sealed, 7)
        numbers = (u32_from_bytes(log_n), u32_from_bytes(r), u32_from_bytes(p))
        # A forged header must not make this machine work for ever.
        if magic != _MAGIC or numbers[0] > _MAX_LOG_N or numbers[1] > _R or numbers[2] > _P or 0 in numbers:
            raise BackupUnreadableError("the sealed keys are of a form that this version does not know")
        key = _derive(passphrase, salt, log_n=numbers[0], r=numbers[1], p=numbers[2])
        plain = AESGCM(key).decrypt(nonce, ciphertext, pack(magic, log_n, r, p, salt, nonce))
        fields = unpack(plain)
        return {text_from_bytes(name): content for name, content in zip(fields[::2], fields[1::2], strict=True)}
    except (InvalidTag, PackedBytesInvalidError, ValueError) as error:
        raise BackupUnreadableError("the passphrase does not open the keys, or they were altered") from error


def _derive(passphrase: bytes, salt: bytes, *, log_n: int, r: int, p: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(passphrase)
