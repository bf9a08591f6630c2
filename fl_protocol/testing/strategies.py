"""Hypothesis strategies for cohorts, drop-outs and bounded vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from fl_protocol.codec.ring_vector import UINT32_LE, UINT64_LE, RingVector
from fl_protocol.ids import SiteId
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.testing.federation import LastSent, small_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A cohort, its payloads as signed integers, and who vanishes when."""

    layout: PayloadLayout
    update: Mapping[SiteId, list[int]]
    count: Mapping[SiteId, list[int]]
    last_sent: Mapping[SiteId, LastSent]

    def vectors(self) -> dict[SiteId, RingVector]:
        """The payloads as ring vectors: a negative integer is its two's complement."""
        return {
            site: RingVector(
                ring32=np.array(self.update[site], np.int64).astype(np.int32).view(np.uint32).astype(UINT32_LE),
                ring64=np.array(self.count[site], np.int64).view(np.uint64).astype(UINT64_LE),
            )
            for site in self.update
        }


def site_names(n: int) -> tuple[SiteId, ...]:
    """``n`` site names whose order is not that of their numbers."""
    return tuple(SiteId(f"site-{number}") for number in range(1, n + 1))


@st.composite
def scenarios(draw: st.DrawFn, *, min_sites: int = 3, max_sites: int = 12) -> Scenario:
    """Any cohort in the range, any admitted payload; half the times any drop-outs, else as many as a sum survives."""
    sites = site_names(draw(st.integers(min_sites, max_sites)))
    layout = small_layout(n_ring32=draw(st.integers(1, 9)), n_ring64=draw(st.integers(0, 3)), max_sites=max_sites)
    largest = layout.max_integer("update")
    staying = st.just(LastSent.M9)
    is_survived = draw(st.booleans())
    # A threshold of two thirds, and one, must remain; who leaves after M3 is a loss that the others can make up for.
    n_spare = len(sites) - (2 * len(sites) // 3 + 1)
    leaving = st.just(LastSent.M3) if is_survived else st.sampled_from(LastSent)
    n_leaving = draw(st.integers(0, n_spare if is_survived else len(sites) // 3 + 1))
    leavers = set(draw(st.permutations(sites))[:n_leaving])
    return Scenario(
        layout=layout,
        update={site: draw(_integers(layout.n_ring32, largest)) for site in sites},
        count={site: draw(_integers(layout.n_ring64, 1000)) for site in sites},
        last_sent={site: draw(leaving if site in leavers else staying) for site in sites},
    )


def _integers(length: int, largest: int) -> st.SearchStrategy[list[int]]:
    extremes = st.sampled_from([-largest, 0, largest])
    return st.lists(extremes | st.integers(-largest, largest), min_size=length, max_size=length)
