"""Shares against an independent implementation: a Vandermonde system, solved by Gaussian elimination."""

from __future__ import annotations

import itertools

import pytest

from fl_protocol.secagg import shamir
from fl_protocol.testing.entropy import SeededEntropy

P = (1 << 255) - 19


def coefficients_by_elimination(points: list[tuple[int, int]]) -> list[int]:
    """The polynomial through the points, by solving V c = y modulo P; no Lagrange, no code of the product."""
    n = len(points)
    rows = [[pow(x, power, P) for power in range(n)] + [y] for x, y in points]
    for column in range(n):
        pivot = next(row for row in range(column, n) if rows[row][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], P - 2, P)
        rows[column] = [value * inverse % P for value in rows[column]]
        for row in range(n):
            if row != column and rows[row][column]:
                factor = rows[row][column]
                rows[row] = [(a - factor * b) % P for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] for row in rows]


def test_split_every_t_shares_lie_on_one_polynomial_of_degree_below_t() -> None:
    secret, threshold, n = 123456789 << 200, 4, 7
    shares = shamir.split(secret, threshold=threshold, n=n, entropy=SeededEntropy("split"))
    points = list(enumerate(shares, start=1))
    expected = coefficients_by_elimination(points[:threshold])
    assert expected[0] == secret
    for subset in itertools.combinations(points, threshold):
        assert coefficients_by_elimination(list(subset)) == expected
    # The degree is exactly t - 1, so that t - 1 shares do not give the secret.
    assert expected[-1] != 0
    assert coefficients_by_elimination(points[: threshold - 1])[0] != secret


@pytest.mark.parametrize(("threshold", "n"), [(1, 1), (2, 3), (3, 3), (5, 7), (9, 12)])
def test_zero_weights_recombine_what_independent_code_shared(threshold: int, n: int) -> None:
    coefficients = [(7**i * 31337 + i) % P for i in range(1, threshold + 1)]
    shares = {x: sum(c * pow(x, k, P) for k, c in enumerate(coefficients)) % P for x in range(1, n + 1)}
    for holders in itertools.islice(itertools.combinations(range(1, n + 1), threshold), 20):
        recombined = shamir.ZeroWeights(holders).recombine({x: shares[x] for x in holders})
        assert recombined == coefficients[0]


def test_zero_weights_one_share_too_few_gives_another_secret() -> None:
    shares = shamir.split(42, threshold=3, n=5, entropy=SeededEntropy("few"))
    assert shamir.ZeroWeights((1, 2)).recombine({1: shares[0], 2: shares[1]}) != 42


def test_zero_weights_repeated_holder_is_refused() -> None:
    with pytest.raises(shamir.SharesInvalidError):
        shamir.ZeroWeights((1, 2, 2))


def test_zero_weights_other_holders_are_refused() -> None:
    with pytest.raises(shamir.SharesInvalidError):
        shamir.ZeroWeights((1, 2)).recombine({1: 1, 3: 1})


def test_draw_element_bytes_above_the_prime_are_drawn_again() -> None:
    class Scripted:
        def __init__(self) -> None:
            self.draws = [b"\xff" * 32, (P - 1).to_bytes(32, "big")]

        def draw(self, n_bytes: int) -> bytes:
            return self.draws.pop(0)[:n_bytes]

    assert shamir.draw_element(Scripted()) == P - 1


@pytest.mark.parametrize("field", [P.to_bytes(32, "big"), bytes(31), bytes(33)])
def test_element_from_bytes_no_element_is_refused(field: bytes) -> None:
    with pytest.raises(shamir.SharesInvalidError):
        shamir.element_from_bytes(field)


@pytest.mark.parametrize(("threshold", "n", "secret"), [(0, 3, 1), (4, 3, 1), (2, 3, P)])
def test_split_impossible_numbers_are_refused(threshold: int, n: int, secret: int) -> None:
    with pytest.raises(shamir.SharesInvalidError):
        shamir.split(secret, threshold=threshold, n=n, entropy=SeededEntropy("x"))
