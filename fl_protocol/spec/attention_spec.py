"""``aggregation.attention``: how the algorithm ``fedmed`` weighs sites by how far each of their layers has moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader

LARGEST_MAX_DISTANCE = 3.0
"""exp(3) is about 20: no site's layer ever counts more than 20 times another's, so that no update stands alone."""


class Distance(StrEnum):
    """How far a layer has moved."""

    L2 = "l2"
    """The Euclidean norm of its update (FedAtt; Ji et al. 2019)."""
    JS = "js"
    """The Jensen-Shannon divergence of the softmax of its weights before and after, 0 .. ln 2."""


class Gate(StrEnum):
    """When sites are weighed by attention."""

    STALLED = "stalled"
    """In the round after one whose mean loss fell by less than ``stall``; by records otherwise."""
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """``aggregation.attention``.

    Attributes:
        distance: how far a layer has moved.
        temperature: what the distance is divided by.
        max_distance: what the quotient is clipped to: no site's layer counts more than exp(max_distance) of another's.
        step: epsilon; how far the adapter goes along the attentive mean.
        gate: when sites are weighed by attention.
        stall: tau, in nats a unit of the loss.
        threshold: a site whose whole update is shorter than this takes the least attention; 0 for none.
    """

    distance: Distance
    temperature: float
    max_distance: float
    step: float
    gate: Gate
    stall: float
    threshold: float

    @property
    def summary(self) -> str:
        """What it does in one sentence, for a page that people approve."""
        when = (
            "in every round"
            if self.gate is Gate.ALWAYS
            else f"after a round whose mean loss fell by less than {self.stall:g}, by records otherwise"
        )
        under = f", the least where the whole update is shorter than {self.threshold:g}" if self.threshold else ""
        return (
            f"a site's layer counts by how far it moved ({self.distance.value} / {self.temperature:g}), "
            f"at most {math.exp(self.max_distance):.1f} times another's{under}; step {self.step:g}; {when}"
        )

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "distance": self.distance.value,
            "temperature": self.temperature,
            "max_distance": self.max_distance,
            "step": self.step,
            "gate": self.gate.value,
            "stall": self.stall,
            "threshold": self.threshold,
        }


def read_attention(section: Reader) -> AttentionSpec:
    """``{distance=l2, temperature=1, max_distance=1, step=1, gate=stalled, stall=0, threshold=0}``."""
    attention = AttentionSpec(
        distance=section.choice("distance", Distance, default=Distance.L2),
        temperature=section.number("temperature", low=1e-9, high=1e9, default=1.0),
        max_distance=section.number("max_distance", low=0, high=LARGEST_MAX_DISTANCE, default=1.0),
        step=section.number("step", above=0, high=2, default=1.0),
        gate=section.choice("gate", Gate, default=Gate.STALLED),
        stall=section.number("stall", low=-64, high=64, default=0.0),
        threshold=section.number("threshold", low=0, high=1e6, default=0.0),
    )
    section.finish()
    return attention
