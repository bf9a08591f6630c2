"""secagg.json, checked by a second reading of docs/protocol/secagg.md: no code of the product but for the last test.

Everything below is struct, hashlib, hmac, Python integers and the primitives of ``cryptography``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import load_der_public_key

P = 2**255 - 19
N32, N64 = 7, 3
FILE = Path(__file__).parent / "secagg.json"


def pack(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def unpack(data: bytes) -> list[bytes]:
    fields = []
    while data:
        (length,) = struct.unpack(">I", data[:4])
        fields.append(data[4 : 4 + length])
        assert len(fields[-1]) == length
        data = data[4 + length :]
    return fields


def digest(tag: str, *fields: bytes) -> bytes:
    return hashlib.sha256(pack(b"SA1/" + tag.encode(), *fields)).digest()


def expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand to 32 bytes is one HMAC (RFC 5869, 2.3)."""
    return hmac.digest(key, info + b"\x01", "sha256")


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return expand(hmac.digest(salt, secret, "sha256"), info)


def is_signed(spki: bytes, kind: bytes, body: bytes, signature: bytes) -> None:
    load_der_public_key(spki).verify(signature, pack(kind, body), ec.ECDSA(hashes.SHA256()))


def tree(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree(leaves[:k]) + tree(leaves[k:])).digest()


def words(data: bytes) -> tuple[list[int], list[int]]:
    return list(struct.unpack(f"<{N32}I", data[: 4 * N32])), list(struct.unpack(f"<{N64}Q", data[4 * N32 :]))


def mask(seed: bytes) -> tuple[list[int], list[int]]:
    streams = []
    for name, n_bytes in ((b"SA1/ring32", 4 * N32), (b"SA1/ring64", 8 * N64)):
        cipher = Cipher(algorithms.AES(expand(seed, pack(name))), modes.CTR(bytes(16))).encryptor()
        streams.append(cipher.update(bytes(n_bytes)))
    return words(b"".join(streams))


def added(a: tuple[list[int], list[int]], b: tuple[list[int], list[int]], sign: int = 1) -> tuple[list[int], list[int]]:
    return (
        [(x + sign * y) % 2**32 for x, y in zip(a[0], b[0], strict=True)],
        [(x + sign * y) % 2**64 for x, y in zip(a[1], b[1], strict=True)],
    )


def at_zero(points: dict[int, int]) -> int:
    """Neville's scheme at x = 0, modulo P."""
    xs, values = list(points), list(points.values())
    for level in range(1, len(xs)):
        for i in range(len(xs) - level):
            x_i, x_j = xs[i], xs[i + level]
            values[i] = (x_j * values[i] - x_i * values[i + 1]) * pow(x_j - x_i, P - 2, P) % P
    return values[0]


class Reading:
    """The file, read message by message; every digest and signature of it checked on the way."""

    def __init__(self) -> None:
        self.file = json.loads(FILE.read_text())
        self.sites = sorted(self.file["inputs"])
        self.survivors = self.file["survivors"]
        body, signature = unpack(self.hex("m0"))
        is_signed(self.hex("coordinator_spki"), b"SA1/sig/M0", body, signature)
        self.manifest = body
        index, attempt = self.file["exchange_index"], self.file["exchange_attempt"]
        self.h_manifest = digest("manifest", body, struct.pack(">I", index), struct.pack(">I", attempt))
        self.m1 = {site: unpack(unpack(self.hex("m1", site))[0]) for site in self.sites}
        self.h_cohort = digest("U1", *(self.body("m1", site) for site in self.sites))
        self.m3 = {site: unpack(self.hex("m3", site)) for site in self.sites}
        self.h_sharers = digest("U2", self.h_cohort, *(unpack(self.m3[site][0])[0] for site in self.sites))
        self.h_survivors = digest("U3", self.h_sharers, *(self.body("m5", site) for site in self.survivors))

    def hex(self, *path: str) -> bytes:
        value = self.file
        for key in path:
            value = value[key]
        return bytes.fromhex(value)

    def body(self, message: str, site: str) -> bytes:
        return unpack(self.hex(message, site))[0]

    def secrets(self, site: str) -> tuple[int, int, bytes]:
        """rho, b and the transport key, from the recorded entropy."""
        entropy = self.hex("entropy", site)
        clear = (1 << 255) - 1
        return (
            int.from_bytes(entropy[:32], "big") & clear,
            int.from_bytes(entropy[32:64], "big") & clear,
            entropy[64:96],
        )

    def polynomial(self, site: str, which: int) -> list[int]:
        """The coefficients of rho's (0) or b's (1) polynomial: four, since t = 4."""
        entropy = self.hex("entropy", site)[96 + 96 * which :]
        drawn = [int.from_bytes(entropy[i : i + 32], "big") & ((1 << 255) - 1) for i in range(0, 96, 32)]
        assert max(drawn) < P
        return [self.secrets(site)[which], *drawn]

    def mask_key(self, rho: int, site: str) -> X25519PrivateKey:
        seed = hkdf(rho.to_bytes(32, "big"), self.h_manifest, pack(b"SA1/rho", site.encode()))
        return X25519PrivateKey.from_private_bytes(expand(seed, pack(b"SA1/x25519")))

    def pair_seed(self, private: X25519PrivateKey, site: str, peer: str) -> bytes:
        secret = private.exchange(X25519PublicKey.from_public_bytes(self.m1[peer][2]))
        first, second = sorted((site.encode(), peer.encode()))
        return hkdf(secret, self.h_sharers, pack(b"SA1/pair", first, second))

    def self_seed(self, b: int, site: str) -> bytes:
        return hkdf(b.to_bytes(32, "big"), self.h_sharers, pack(b"SA1/self", site.encode()))


@pytest.fixture(scope="module")
def reading() -> Reading:
    return Reading()


def test_vectors_m0_names_run_round_and_layout(reading: Reading) -> None:
    fields = unpack(reading.manifest)
    assert len(fields) == 15
    assert fields[0] == b"run-" + b"a" * 26
    assert fields[1:3] == [bytes(4), bytes(4)]
    assert fields[3:5] == [b"train", b"SA1"]
    # RFC 8785 of this document: keys sorted, no spaces, 1.0 as 1.
    layout = json.dumps(reading.file["layout"], sort_keys=True, separators=(",", ":")).replace(".0", "")
    assert fields[9] == hashlib.sha256(layout.encode()).digest()


def test_vectors_m1_keys_and_commitments_follow_from_the_entropy(reading: Reading) -> None:
    for site in reading.sites:
        body, signature = unpack(reading.hex("m1", site))
        name, h_manifest, mask_key, transport_key, beta, spki, *heads = unpack(body)
        is_signed(spki, b"SA1/sig/M1", body, signature)
        rho, b, transport = reading.secrets(site)
        assert (name, h_manifest) == (site.encode(), reading.h_manifest)
        assert mask_key == reading.mask_key(rho, site).public_key().public_bytes_raw()
        assert transport_key == X25519PrivateKey.from_private_bytes(transport).public_key().public_bytes_raw()
        assert beta == digest("bcommit", site.encode(), reading.h_manifest, b.to_bytes(32, "big"))
        assert heads == [bytes(8), bytes(32), bytes(8), bytes(32)]


def test_vectors_m2_is_the_list_of_m1(reading: Reading) -> None:
    assert reading.hex("m2") == pack(*(reading.hex("m1", site) for site in reading.sites))


def test_vectors_m3_shares_open_and_lie_on_the_polynomials(reading: Reading) -> None:
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    for dealer in reading.sites:
        signed, *leaves = reading.m3[dealer]
        body, signature = unpack(signed)
        is_signed(reading.m1[dealer][5], b"SA1/sig/M3", body, signature)
        assert unpack(body) == [dealer.encode(), reading.h_cohort, tree(leaves), struct.pack(">I", 4)]
        for x, (holder, leaf) in enumerate(zip(reading.sites, leaves, strict=True), start=1):
            name, ciphertext, commitment = unpack(leaf)
            values = [
                sum(c * pow(x, k, P) for k, c in enumerate(reading.polynomial(dealer, which))) % P for which in (0, 1)
            ]
            shares = [value.to_bytes(32, "big") for value in values]
            assert name == holder.encode()
            assert commitment == b"".join(
                digest("share", dealer.encode(), name, kind, share)
                for kind, share in zip((b"r", b"b"), shares, strict=True)
            )
            if holder == dealer:
                assert ciphertext == b""
            else:
                info = pack(b"SA1/share", reading.h_cohort, dealer.encode(), name)
                private = X25519PrivateKey.from_private_bytes(reading.secrets(holder)[2])
                assert suite.decrypt(ciphertext, private, info) == b"".join(shares)


def test_vectors_m4_paths_lead_to_the_signed_roots(reading: Reading) -> None:
    for index, holder in enumerate(reading.sites):
        dealt = unpack(reading.hex("m4", holder))
        for dealer, entry in zip(reading.sites, dealt, strict=True):
            header, leaf, path = unpack(entry)
            leaves = reading.m3[dealer][1:]
            assert (header, leaf) == (reading.m3[dealer][0], leaves[index])
            # Five leaves: the first four under one node, the fifth beside it.
            h = [hashlib.sha256(b"\x00" + one).digest() for one in leaves]
            expected = {
                0: [h[1], tree(leaves[2:4]), h[4]],
                1: [h[0], tree(leaves[2:4]), h[4]],
                2: [h[3], tree(leaves[0:2]), h[4]],
                3: [h[2], tree(leaves[0:2]), h[4]],
                4: [tree(leaves[0:4])],
            }[index]
            assert unpack(path) == expected


def test_vectors_m5_vectors_are_the_inputs_under_their_masks(reading: Reading) -> None:
    for site in reading.survivors:
        rho, b, _ = reading.secrets(site)
        private = reading.mask_key(rho, site)
        masked = added(words(reading.hex("inputs", site)), mask(reading.self_seed(b, site)))
        for peer in reading.sites:
            if peer != site:
                masked = added(masked, mask(reading.pair_seed(private, site, peer)), 1 if peer > site else -1)
        upload = reading.hex("uploads", site)
        assert words(upload) == masked
        body, signature = unpack(reading.hex("m5", site))
        is_signed(reading.m1[site][5], b"SA1/sig/M5", body, signature)
        size = reading.file["chunk_bytes"]
        root = tree([upload[i : i + size] for i in range(0, len(upload), size)])
        assert unpack(body) == [site.encode(), reading.h_sharers, root, struct.pack(">Q", len(upload))]


def test_vectors_m6_to_m8_agree_on_the_survivors(reading: Reading) -> None:
    assert reading.hex("m6") == pack(*(reading.hex("m5", site) for site in reading.survivors))
    for site in reading.survivors:
        body, signature = unpack(reading.hex("m7", site))
        is_signed(reading.m1[site][5], b"SA1/sig/M7", body, signature)
        assert unpack(body) == [site.encode(), reading.h_survivors]
    assert reading.hex("m8") == pack(*(reading.hex("m7", site) for site in reading.survivors))


def revealed(reading: Reading) -> dict[str, tuple[bytes, dict[int, int]]]:
    """Of every sharer the kind that was revealed, and the shares by holder number."""
    shares: dict[str, tuple[bytes, dict[int, int]]] = {}
    for holder in reading.survivors:
        body, signature = unpack(reading.hex("m9", holder))
        is_signed(reading.m1[holder][5], b"SA1/sig/M9", body, signature)
        name, h_survivors, entries = unpack(body)
        assert (name, h_survivors) == (holder.encode(), reading.h_survivors)
        for entry in unpack(entries):
            peer, kind, share = unpack(entry)
            kind_so_far, points = shares.setdefault(peer.decode(), (kind, {}))
            assert kind == kind_so_far
            points[reading.sites.index(holder) + 1] = int.from_bytes(share, "big")
    return shares


def test_vectors_m9_shares_give_the_secrets_and_the_sum(reading: Reading) -> None:
    shares = revealed(reading)
    assert {site: kind for site, (kind, _) in shares.items()} == {
        site: b"b" if site in reading.survivors else b"r" for site in reading.sites
    }
    total: tuple[list[int], list[int]] = ([0] * N32, [0] * N64)
    for site in reading.survivors:
        total = added(total, words(reading.hex("uploads", site)))
    for site, (kind, points) in shares.items():
        secret = at_zero(points)
        rho, b, _ = reading.secrets(site)
        assert secret == (b if kind == b"b" else rho)
        if kind == b"b":
            total = added(total, mask(reading.self_seed(secret, site)), -1)
        else:
            private = reading.mask_key(secret, site)
            for peer in reading.survivors:
                # The survivor added its mask with the lost site if that site's name is the later one.
                total = added(total, mask(reading.pair_seed(private, site, peer)), -1 if site > peer else 1)
    expected: tuple[list[int], list[int]] = ([0] * N32, [0] * N64)
    for site in reading.survivors:
        expected = added(expected, words(reading.hex("inputs", site)))
    assert total == expected == words(reading.hex("sum"))


def test_vectors_m10_states_the_sum_and_the_transcript(reading: Reading) -> None:
    leaves = [pack(b"SA1/sig/M0", *unpack(reading.hex("m0")))]
    leaves += [pack(b"SA1/sig/M1", *unpack(reading.hex("m1", site))) for site in reading.sites]
    leaves += [pack(b"SA1/sig/M3", *unpack(reading.m3[site][0])) for site in reading.sites]
    for number in ("5", "7", "9"):
        leaves += [
            pack(b"SA1/sig/M" + number.encode(), *unpack(reading.hex("m" + number, site))) for site in reading.survivors
        ]
    body, signature = unpack(reading.hex("m10"))
    is_signed(reading.hex("coordinator_spki"), b"SA1/sig/M10", body, signature)
    result = hashlib.sha256(reading.hex("sum")).digest()
    assert unpack(body) == [reading.h_manifest, reading.h_survivors, result, tree(leaves)]


class RecordedSealer:
    """Gives the recorded ciphertexts out again, in the order of their leaves; opens nothing."""

    def __init__(self, m3: bytes) -> None:
        self.ciphertexts = [unpack(leaf)[1] for leaf in unpack(m3)[1:]]
        self.ciphertexts = [ciphertext for ciphertext in self.ciphertexts if ciphertext]

    def seal(self, plaintext: bytes, *, public: bytes, info: bytes) -> bytes:
        return self.ciphertexts.pop(0)

    def unseal(self, ciphertext: bytes, *, private: bytes, info: bytes) -> bytes:
        return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(
            ciphertext, X25519PrivateKey.from_private_bytes(private), info
        )


def test_vectors_replayed_through_the_product_give_the_same_bytes(reading: Reading) -> None:
    from fl_protocol.codec.ring_vector import RingVector
    from fl_protocol.testing.federation import Federation, LastSent, small_layout
    from fl_protocol.testing.strategies import site_names

    layout = small_layout(n_ring32=N32, n_ring64=N64, max_sites=8)
    federation = Federation(
        site_names(5), layout, seed="vectors", sealer_of=lambda site: RecordedSealer(reading.hex("m3", site))
    )
    vectors = {
        site: RingVector.from_bytes(reading.hex("inputs", site), n32=N32, n64=N64) for site in federation.site_ids
    }
    said = federation.exchange(vectors, last_sent={"site-2": LastSent.M3}).conversation
    for number, messages in (
        ("1", said.m1s),
        ("3", said.m3s),
        ("4", said.m4s),
        ("5", said.m5s),
        ("7", said.m7s),
        ("9", said.m9s),
    ):
        assert {site: message.hex() for site, message in messages.items()} == reading.file["m" + number]
    assert [said.m2.hex(), said.m6.hex(), said.m8.hex(), said.m10.hex()] == [
        reading.file[name] for name in ("m2", "m6", "m8", "m10")
    ]
