"""``adapter: {kind: full}``: every parameter of a small model is trained, from scratch, and exchanged.

Adapter v0 is drawn from the run's seed. Of the base model its shape and its vocabulary count, and not its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSpec(AdapterSpec):
    """Every parameter. Has no keys of its own."""

    @property
    def kind(self) -> AdapterKind:
        """All parameters."""
        return AdapterKind.FULL

    @property
    def summary(self) -> str:
        """What a page says."""
        return "all parameters, from scratch"

    def options(self) -> dict[str, object]:
        """None."""
        return {}


def read_full(section: Reader, digests: AdapterDigests) -> FullSpec:
    """No keys."""
    del section
    return FullSpec(layout_sha256=digests.layout_sha256, initial_sha256=digests.initial_sha256)
