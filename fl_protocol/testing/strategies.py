"""Hypothesis strategies for cohorts, drop-outs and bounded vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

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


class Losses(StrEnum):
    """Who leaves an exchange, by what becomes of it."""

    NONE = "none"
    SURVIVED = "survived"
    """After M3 and before the masked vector, and as few as the others can make up for."""
    FATAL = "fatal"
    """Anywhere, and one more than the others can make up for, or more."""
    ANY = "any"


@st.composite
def scenarios(draw: st.DrawFn, *, losses: Losses = Losses.ANY, max_sites: int = 12) -> Scenario:
    """Any cohort from the smallest that can have such losses, and any admitted payload."""
    sites = site_names(draw(st.integers(4 if losses is Losses.SURVIVED else 3, max_sites)))
    layout = small_layout(n_ring32=draw(st.integers(1, 9)), n_ring64=draw(st.integers(0, 3)), max_sites=max_sites)
    largest = layout.max_integer("update")
    # A threshold of two thirds, and one, must remain.
    n_spare = len(sites) - (2 * len(sites) // 3 + 1)
    leaving, n_leaving = {
        Losses.NONE: (st.just(LastSent.M9), st.just(0)),
        Losses.SURVIVED: (st.just(LastSent.M3), st.integers(1, n_spare)),
        # Who never began is no loss: the threshold is of those who did.
        Losses.FATAL: (
            st.sampled_from([LastSent.M1, LastSent.M3, LastSent.M5, LastSent.M7]),
            st.integers(n_spare + 1, len(sites)),
        ),
        Losses.ANY: (st.sampled_from(LastSent), st.integers(0, len(sites) // 3 + 1)),
    }[losses]
    leavers = set(draw(st.permutations(sites))[: draw(n_leaving)])
    return Scenario(
        layout=layout,
        update={site: draw(_integers(layout.n_ring32, largest)) for site in sites},
        count={site: draw(_integers(layout.n_ring64, 1000)) for site in sites},
        last_sent={site: draw(leaving) if site in leavers else LastSent.M9 for site in sites},
    )


def _integers(length: int, largest: int) -> st.SearchStrategy[list[int]]:
    extremes = st.sampled_from([-largest, 0, largest])
    return st.lists(extremes | st.integers(-largest, largest), min_size=length, max_size=length)
