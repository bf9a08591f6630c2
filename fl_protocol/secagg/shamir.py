"""Shamir's secret sharing over GF(2**255 - 19): any t of n shares give the secret, fewer say nothing about it.

Shamir, "How to share a secret" (1979). Holder number k (1 .. n) receives the polynomial's value at x = k. An element is
32 bytes, big-endian. Python's integers are not constant-time: see docs/protocol/secagg.md, what is not protected.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.errors import ProtocolError
from fl_protocol.secagg.entropy import Entropy

PRIME = 2**255 - 19
ELEMENT_BYTES = 32


class SharesInvalidError(ProtocolError):
    """Shares, or their number, that no polynomial of this field can have."""

    code = "shares-invalid"


def draw_element(entropy: Entropy) -> int:
    """A uniform field element: 32 bytes with the top bit cleared, drawn again in the rare case that they reach p."""
    while True:
        candidate = int.from_bytes(entropy.draw(ELEMENT_BYTES), "big") & ((1 << 255) - 1)
        if candidate < PRIME:
            return candidate


def element_to_bytes(element: int) -> bytes:
    """32 bytes, big-endian."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def element_from_bytes(field: bytes) -> int:
    """The element that ``element_to_bytes`` encoded.

    Raises:
        SharesInvalidError: the field is not 32 bytes, or not below the prime.
    """
    element = int.from_bytes(field, "big")
    if len(field) != ELEMENT_BYTES or element >= PRIME:
        raise SharesInvalidError("an element is 32 bytes, below 2**255 - 19", n_bytes=len(field))
    return element


def split(secret: int, *, threshold: int, n: int, entropy: Entropy) -> tuple[int, ...]:
    """Share a secret among n holders; holder k's share is at index k - 1.

    Args:
        secret: a field element.
        threshold: how many shares give it back, 1 .. n.
        n: how many holders.
        entropy: the coefficients come from here.

    Raises:
        SharesInvalidError: the numbers do not fit each other.
    """
    if not 1 <= threshold <= n or not 0 <= secret < PRIME:
        raise SharesInvalidError("a threshold is 1 .. n and a secret an element", threshold=threshold, n=n)
    coefficients = [draw_element(entropy) for _ in range(threshold - 1)]
    return tuple(_evaluate(secret, coefficients, x) for x in range(1, n + 1))


def _evaluate(secret: int, coefficients: list[int], x: int) -> int:
    """Secret + c1 x + c2 x**2 + ..., by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * x % PRIME
    return (value + secret) % PRIME


class ZeroWeights:
    """Lagrange's weights at x = 0 for one set of holders, computed once and used for every secret they share."""

    __slots__ = ("_weights",)

    def __init__(self, holders: tuple[int, ...]) -> None:
        """Weights for exactly these holders.

        Raises:
            SharesInvalidError: a holder is listed twice or is not 1 or more.
        """
        if not holders or len(set(holders)) != len(holders) or min(holders) < 1:
            raise SharesInvalidError("holders are distinct positive numbers", n=len(holders))
        weights: dict[int, int] = {}
        for x in holders:
            numerator = denominator = 1
            for other in holders:
                if other != x:
                    numerator = numerator * other % PRIME
                    denominator = denominator * (other - x) % PRIME
            weights[x] = numerator * pow(denominator, -1, PRIME) % PRIME
        self._weights = weights

    def recombine(self, shares: Mapping[int, int]) -> int:
        """The secret from the shares of exactly these holders.

        Raises:
            SharesInvalidError: the holders are others.
        """
        if shares.keys() != self._weights.keys():
            raise SharesInvalidError("the shares are those of other holders", n=len(shares))
        return sum(weight * shares[x] for x, weight in self._weights.items()) % PRIME
