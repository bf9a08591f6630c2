"""HPKE against an independent implementation of RFC 9180, which is itself checked against the RFC's vectors."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fl_protocol.secagg.sealing import OVERHEAD_BYTES, HpkeSealer, UnsealError

VECTORS = Path(cryptography_vectors.__file__).parent / "HPKE" / "test-vectors.json"
KEM_SUITE = b"KEM" + (32).to_bytes(2, "big")
HPKE_SUITE = b"HPKE" + (32).to_bytes(2, "big") + (1).to_bytes(2, "big") + (2).to_bytes(2, "big")


def extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")


def expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    output, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + labeled + bytes([counter]), "sha256")
        output += block
    return output[:length]


def key_and_nonce(dh: bytes, enc: bytes, public: bytes, info: bytes) -> tuple[bytes, bytes]:
    """RFC 9180, 4.1 (ExtractAndExpand) and 5.1 (KeySchedule, mode base)."""
    prk = extract(KEM_SUITE, b"", b"eae_prk", dh)
    shared = expand(KEM_SUITE, prk, b"shared_secret", enc + public, 32)
    psk_id_hash = extract(HPKE_SUITE, b"", b"psk_id_hash", b"")
    context = b"\x00" + psk_id_hash + extract(HPKE_SUITE, b"", b"info_hash", info)
    secret = extract(HPKE_SUITE, shared, b"secret", b"")
    key = expand(HPKE_SUITE, secret, b"key", context, 32)
    return key, expand(HPKE_SUITE, secret, b"base_nonce", context, 12)


def independent_seal(plaintext: bytes, *, ephemeral: bytes, public: bytes, info: bytes, aad: bytes = b"") -> bytes:
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    enc = private.public_key().public_bytes_raw()
    dh = private.exchange(X25519PublicKey.from_public_bytes(public))
    key, nonce = key_and_nonce(dh, enc, public, info)
    return enc + AESGCM(key).encrypt(nonce, plaintext, aad)


def independent_open(sealed: bytes, *, private: bytes, info: bytes) -> bytes:
    own = X25519PrivateKey.from_private_bytes(private)
    dh = own.exchange(X25519PublicKey.from_public_bytes(sealed[:32]))
    key, nonce = key_and_nonce(dh, sealed[:32], own.public_key().public_bytes_raw(), info)
    return AESGCM(key).decrypt(nonce, sealed[32:], b"")


@pytest.fixture(scope="module")
def case() -> dict[str, str]:
    ours = {"mode": 0, "kem_id": 32, "kdf_id": 1, "aead_id": 2}
    cases = [case for case in json.loads(VECTORS.read_text()) if ours.items() <= case.items()]
    assert cases
    return cases[0]


def test_independent_seal_rfc_9180_vector_is_the_published_one(case: dict) -> None:
    first = case["encryptions"][0]
    sealed = independent_seal(
        bytes.fromhex(first["pt"]),
        ephemeral=bytes.fromhex(case["skEm"]),
        public=bytes.fromhex(case["pkRm"]),
        info=bytes.fromhex(case["info"]),
        aad=bytes.fromhex(first["aad"]),
    )
    assert sealed.hex() == case["enc"] + first["ct"]


def test_hpke_sealer_opens_what_the_rfc_keys_seal_without_associated_data(case: dict) -> None:
    # The RFC's vectors carry associated data and SA1 uses none: the same keys and info, sealed independently.
    info = bytes.fromhex(case["info"])
    sealed = independent_seal(
        b"share", ephemeral=bytes.fromhex(case["skEm"]), public=bytes.fromhex(case["pkRm"]), info=info
    )
    assert HpkeSealer().unseal(sealed, private=bytes.fromhex(case["skRm"]), info=info) == b"share"


def test_hpke_sealer_seals_what_independent_code_opens(case: dict) -> None:
    sealed = HpkeSealer().seal(bytes(64), public=bytes.fromhex(case["pkRm"]), info=b"info")
    assert len(sealed) == 64 + OVERHEAD_BYTES
    assert independent_open(sealed, private=bytes.fromhex(case["skRm"]), info=b"info") == bytes(64)


def test_hpke_sealer_other_info_key_or_bytes_do_not_open() -> None:
    private = hashlib.sha256(b"receiver").digest()
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    sealer = HpkeSealer()
    sealed = sealer.seal(b"share", public=public, info=b"info")
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    attempts = [
        (sealed, private, b"other"),
        (sealed, bytes([9]) * 32, b"info"),
        (altered, private, b"info"),
        (sealed[:40], private, b"info"),
        (b"", private, b"info"),
    ]
    for ciphertext, key, info in attempts:
        with pytest.raises(UnsealError):
            sealer.unseal(ciphertext, private=key, info=info)


@pytest.mark.parametrize("public", [bytes(31), bytes(32)])
def test_hpke_sealer_public_key_that_is_none_is_refused(public: bytes) -> None:
    with pytest.raises(UnsealError):
        HpkeSealer().seal(b"share", public=public, info=b"")
