from __future__ import annotations

import re
from pathlib import Path

import cryptography_vectors
import pytest

from fl_protocol.secagg.key_agreement import (
    KeyAgreementError,
    agree,
    hkdf,
    hkdf_expand,
    key_pair_from_private,
    mask_key_pair,
    pair_seed,
    self_seed,
)

VECTORS = Path(cryptography_vectors.__file__).parent

SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def test_agree_rfc_7748_section_5_2_vectors_are_the_published_ones() -> None:
    text = (VECTORS / "asymmetric" / "X25519" / "rfc7748.txt").read_text()
    cases = re.findall(r"INPUT_SCALAR = (\w+)\s+INPUT_U = (\w+)\s+OUTPUT_U = (\w+)", text)
    assert len(cases) >= 3
    for case in cases[:3]:  # those after them are iterated
        scalar, point, expected = map(bytes.fromhex, case)
        assert agree(scalar, point) == expected


def test_key_pair_rfc_7748_first_iteration_is_the_public_key_of_nine() -> None:
    # Section 5.2: X25519(9, 9), and 9 is the base point.
    expected = bytes.fromhex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert key_pair_from_private((9).to_bytes(32, "little")).public == expected


def hkdf_cases() -> list[dict[str, bytes]]:
    text = (VECTORS / "KDF" / "rfc-5869-HKDF-SHA256.txt").read_text()
    cases: list[dict[str, bytes]] = []
    for block in text.split("COUNT")[1:]:
        fields = dict(re.findall(r"^(IKM|salt|info|PRK|OKM)[ ]*=[ ]*(\w*)", block, re.MULTILINE))
        cases.append({name: bytes.fromhex(value) for name, value in fields.items()})
    return cases


def test_hkdf_rfc_5869_vectors_are_the_published_ones() -> None:
    cases = hkdf_cases()
    assert len(cases) == 3
    for case in cases:
        # Expanding to 32 bytes gives the first 32 of any longer output.
        expected = case["OKM"][:32]
        assert hkdf(case["IKM"], salt=case.get("salt", b""), info=case.get("info", b"")) == expected
        assert hkdf_expand(case["PRK"], case.get("info", b"")) == expected


@pytest.mark.parametrize("public", [*SMALL_ORDER, bytes(31)])
def test_agree_public_key_of_small_order_or_wrong_size_is_refused(public: bytes) -> None:
    with pytest.raises(KeyAgreementError):
        agree(bytes([7]) * 32, public)


def test_pair_seed_is_the_same_from_either_side_and_bound_to_pair_and_sharers() -> None:
    a, b = key_pair_from_private(bytes([1]) * 32), key_pair_from_private(bytes([2]) * 32)
    h = bytes(32)
    seed = pair_seed(a.private, b.public, sites=("a", "b"), h_sharers=h)
    assert seed == pair_seed(b.private, a.public, sites=("b", "a"), h_sharers=h)
    assert seed != pair_seed(a.private, b.public, sites=("a", "c"), h_sharers=h)
    assert seed != pair_seed(a.private, b.public, sites=("a", "b"), h_sharers=bytes([1]) * 32)


def test_derived_secrets_are_bound_to_site_and_exchange() -> None:
    h, other = bytes(32), bytes([1]) * 32
    keys = {mask_key_pair(5, site=site, h_manifest=m).private for site in ("a", "b") for m in (h, other)}
    seeds = {self_seed(5, site=site, h_sharers=m) for site in ("a", "b") for m in (h, other)}
    assert len(keys | seeds) == 8


def test_key_pair_hides_its_private_half() -> None:
    pair = key_pair_from_private(b"\x41" * 32)
    assert "AAAA" not in repr(pair)
