"""The seed of one site's training in one attempt of one round: derived, so that it can be recomputed; never used twice.

Knows no generator: it gives a number.
"""

from __future__ import annotations

import hashlib

import rfc8785

from fl_protocol.ids import SiteId


def training_seed(*, run_seed: int, site_id: SiteId, round_index: int, round_attempt: int) -> int:
    """The seed as a uint64: the first eight bytes, big-endian, of

        SHA-256(RFC 8785 of ["wardround/training-seed", run_seed, site_id, round_index, round_attempt]).

    Two attempts of a round train with different seeds, so that no vector is ever masked twice.
    """  # noqa: D415  # the summary runs into its equation
    fields: list[str | int] = ["wardround/training-seed", run_seed, str(site_id), round_index, round_attempt]
    return int.from_bytes(hashlib.sha256(rfc8785.dumps([*fields])).digest()[:8], "big")
