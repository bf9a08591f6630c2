"""What a secure sum demands of its cohort. A site computes every number here itself, from the cohort that it sees.

Knows no message: only how many of n must hold, survive and sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.errors import ProtocolError

SUITE_SA1 = "SA1"
SMALLEST_COHORT = 3
CHUNK_BYTES = 1 << 20


class SecAggParamsInvalidError(ProtocolError):
    """Parameters that would not protect anybody, or that this version does not speak."""

    code = "secagg-params-invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggParams:
    """The rules of a secure sum.

    Invariant: ``2 * threshold(n) > n + assumed_colluders``, so that no two sets of survivors can both gather a
    threshold of shares, even when that many sites answer the coordinator twice (design 1, Thresholds).

    Attributes:
        suite: the cryptographic suite; only SA1 in this version.
        min_cohort: how many sites must take part and survive, at least 3.
        assumed_colluders: how many sites are assumed to tell the coordinator all they know.
        chunk_bytes: the unit of transport, of the upload's digest tree and of the audit.
    """

    suite: str = SUITE_SA1
    min_cohort: int = SMALLEST_COHORT
    assumed_colluders: int = 0
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        if self.suite != SUITE_SA1:
            raise SecAggParamsInvalidError("this version speaks suite SA1 only", suite=self.suite)
        if self.min_cohort < SMALLEST_COHORT:
            raise SecAggParamsInvalidError("a cohort has at least three sites", min_cohort=self.min_cohort)
        if self.assumed_colluders < 0:
            raise SecAggParamsInvalidError("a number of sites is not negative", colluders=self.assumed_colluders)
        if self.chunk_bytes <= 0 or self.chunk_bytes % 16:
            raise SecAggParamsInvalidError("a chunk is a multiple of 16 bytes", chunk_bytes=self.chunk_bytes)

    def threshold(self, n: int) -> int:
        """Shamir's t for a cohort of n: ``floor(2n/3) + 1``, or more where 2t > n + c needs it.

        It may exceed n; then no cohort of that size is safe under the assumption, and a site refuses it.
        """
        return max(2 * n // 3 + 1, (n + self.assumed_colluders) // 2 + 1)

    def max_left_over(self, n: int) -> int:
        """How many of an earlier cohort of n may turn up again although the others unmask its sum: ``n - t + c``.

        A site that returns has left the earlier exchange for good and reveals nothing in it, unless it colludes. When
        more return, fewer than t can reveal there, and that sum cannot be had any more.
        """
        return n - self.threshold(n) + self.assumed_colluders

    def min_sharers(self, n: int) -> int:
        """How many of a cohort of n must have dealt shares (U2): ``max(t, min_cohort)``."""
        return max(self.threshold(n), self.min_cohort)

    def min_survivors(self, n: int) -> int:
        """How many of a cohort of n must have uploaded (U3): ``max(t, min_cohort, 3 + c)``."""
        return max(self.threshold(n), self.min_cohort, SMALLEST_COHORT + self.assumed_colluders)
