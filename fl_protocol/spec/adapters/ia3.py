"""``adapter: {kind: ia3}``: one vector a module that rescales its activations (Liu et al., NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.adapters.lora import read_targets
from fl_protocol.spec.faults import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Ia3Spec(AdapterSpec):
    """Vectors on every module whose name ends in one of ``targets``.

    Attributes:
        feedforward: those of the targets whose input is rescaled, and not their output. Invariant: all are targets.
    """

    targets: tuple[str, ...]
    feedforward: tuple[str, ...]

    @property
    def kind(self) -> AdapterKind:
        """IA3."""
        return AdapterKind.IA3

    @property
    def summary(self) -> str:
        """``IA3 on k_proj, v_proj, down_proj``."""
        return f"IA3 on {', '.join(self.targets)}"

    def options(self) -> dict[str, object]:
        """Its keys as JSON values."""
        return {"targets": list(self.targets), "feedforward": list(self.feedforward)}


def read_ia3(section: Reader, digests: AdapterDigests) -> Ia3Spec:
    """``{targets, feedforward=[]}``."""
    targets = read_targets(section)
    feedforward = _read_feedforward(section, targets)
    return Ia3Spec(
        layout_sha256=digests.layout_sha256,
        initial_sha256=digests.initial_sha256,
        targets=targets,
        feedforward=feedforward,
    )


def _read_feedforward(section: Reader, targets: tuple[str, ...]) -> tuple[str, ...]:
    if not section.has("feedforward") or section.is_empty("feedforward"):
        section.skip("feedforward")
        return ()
    found: list[str] = []
    for index, item in enumerate(section.items("feedforward")):
        if not isinstance(item, str) or item not in targets:
            section.fault(f"feedforward[{index}]", "must be one of adapter.targets")
        elif item in found:
            section.fault(f"feedforward[{index}]", f"{item!r} is named twice")
        else:
            found.append(item)
    return tuple(found)
