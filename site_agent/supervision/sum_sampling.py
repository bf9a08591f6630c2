"""Which chunks of a published sum this site checks itself: drawn so that nobody else can foretell or influence it.

Pure. A draw follows from a secret of the site and the result's digest: the coordinator has fixed the whole sum before
it can learn what is checked, and a call that it lets fail is asked again for the same chunk, never for another one.
"""

from __future__ import annotations

from collections.abc import Iterator

from fl_protocol.codec.chunks import CHUNK_BYTES, n_chunks
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.key_agreement import hkdf_expand
from fl_protocol.secagg.reexecution import chunks_of_ring64
from fl_protocol.spec.payload_layout import PayloadLayout

SMALLEST_BUDGET_BYTES = 4 << 20
_SHARE_OF_THE_SUM = 4


def sampled_chunks(seed: bytes, layout: PayloadLayout, *, n_sites: int) -> tuple[int, ...]:
    """The chunks to check, ascending; none where even one costs more than a site should fetch, and the draw says so.

    A chunk costs one chunk of every survivor. A site fetches up to 4 MiB, or a quarter of the sum's size where that is
    more; where one chunk costs more than that, it is checked with the probability that makes this the mean. One chunk
    of the 64-bit section, which holds weights, losses and counts, comes first; of one chunk alone, half the times.

    Args:
        seed: 32 bytes that only this site knows, another for every result.
        layout: of the payload.
        n_sites: how many survivors the sum has.
    """
    total = n_chunks(layout.n_bytes)
    cost = n_sites * min(CHUNK_BYTES, layout.n_bytes)
    budget = max(SMALLEST_BUDGET_BYTES, layout.n_bytes // _SHARE_OF_THE_SUM)
    draws = _draws(seed)
    n_affordable = budget // cost
    if n_affordable == 0:
        if next(draws) % cost >= budget:
            return ()
        n_affordable = 1
    order = list(range(total))
    for last in range(total - 1, 0, -1):
        # Fisher and Yates; 256 bits modulo a chunk count favour nothing by more than 2**-200.
        other = next(draws) % (last + 1)
        order[last], order[other] = order[other], order[last]
    tail = chunks_of_ring64(layout)
    is_tail_first = n_affordable > 1 or next(draws) % 2 == 0
    if len(tail) and is_tail_first:
        first = tail[next(draws) % len(tail)]
        order.remove(first)
        order.insert(0, first)
    return tuple(sorted(order[:n_affordable]))


def every_chunk(layout: PayloadLayout) -> tuple[int, ...]:
    """All chunks, ascending."""
    return tuple(range(n_chunks(layout.n_bytes)))


def _draws(seed: bytes) -> Iterator[int]:
    """Uniform numbers of 256 bits."""
    number = 0
    while True:
        yield int.from_bytes(hkdf_expand(seed, pack(b"WR/sum-sample", u32(number))), "big")
        number += 1
