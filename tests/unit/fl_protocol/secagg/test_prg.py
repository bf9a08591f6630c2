from __future__ import annotations

import re
from pathlib import Path

import cryptography_vectors
import pytest

from fl_protocol.secagg.prg import Keystream, MaskKeyInvalidError

RFC_3686 = Path(cryptography_vectors.__file__).parent / "ciphers" / "AES" / "CTR" / "aes-256-ctr.txt"


def rfc_3686_cases() -> list[dict[str, bytes]]:
    text = RFC_3686.read_text()
    pattern = r"KEY = (\w+)\s+IV = (\w+)\s+PLAINTEXT = (\w+)\s+CIPHERTEXT = (\w+)"
    names = ("key", "iv", "plaintext", "ciphertext")
    cases = re.findall(pattern, text, re.IGNORECASE)
    return [dict(zip(names, map(bytes.fromhex, case), strict=True)) for case in cases]


def test_keystream_nist_sp_800_38a_f_5_5_is_the_published_one() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", 16)
    plaintext = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    expected = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    keystream = Keystream(key, initial_counter=counter).read(64)
    assert bytes(a ^ b for a, b in zip(keystream, plaintext, strict=True)) == expected
    # Entered at a block, the counter has advanced by as much.
    assert Keystream(key, offset=48, initial_counter=counter).read(16) == keystream[48:]


def test_keystream_rfc_3686_vectors_are_the_published_ones() -> None:
    cases = rfc_3686_cases()
    assert cases
    for case in cases:
        stream = Keystream(case["key"], initial_counter=int.from_bytes(case["iv"], "big"))
        keystream = stream.read(len(case["plaintext"]))
        assert bytes(a ^ b for a, b in zip(keystream, case["plaintext"], strict=True)) == case["ciphertext"]


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 17, 1000])
def test_keystream_entered_anywhere_continues_the_same_stream(offset: int) -> None:
    key = bytes(range(32))
    whole = Keystream(key).read(2048)
    assert Keystream(key, offset=offset).read(100) == whole[offset : offset + 100]


def test_keystream_read_into_parts_equals_one_read() -> None:
    key = bytes(range(32))
    out = bytearray(100)
    stream = Keystream(key)
    for start, stop in ((0, 7), (7, 64), (64, 100)):
        stream.read_into(memoryview(bytes(stop - start)), memoryview(out)[start:stop])
    assert bytes(out) == Keystream(key).read(100)


def test_keystream_short_key_is_refused() -> None:
    with pytest.raises(MaskKeyInvalidError):
        Keystream(bytes(16))
