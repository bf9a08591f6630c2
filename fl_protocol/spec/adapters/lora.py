"""``adapter: {kind: lora}``: a low-rank pair beside each targeted linear module (Hu et al., ICLR 2022)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Reader

_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec(AdapterSpec):
    """``W = W0 + (alpha / rank) B A`` on every module whose name ends in one of ``targets``."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def kind(self) -> AdapterKind:
        """LoRA."""
        return AdapterKind.LORA

    @property
    def summary(self) -> str:
        """``LoRA, rank 8, alpha 16, q_proj, v_proj``."""
        return f"LoRA, rank {self.rank}, alpha {self.alpha:g}, {', '.join(self.targets)}"

    @property
    def low_rank(self) -> int:
        """Its rank."""
        return self.rank

    @property
    def has_dropout(self) -> bool:
        """Whether ``dropout`` is not 0."""
        return self.dropout > 0

    def options(self) -> dict[str, object]:
        """Its keys as JSON values."""
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, "targets": list(self.targets)}


def read_lora(section: Reader, digests: AdapterDigests) -> LoraSpec:
    """``{rank, alpha, targets, dropout=0}``."""
    return LoraSpec(
        layout_sha256=digests.layout_sha256,
        initial_sha256=digests.initial_sha256,
        rank=section.integer("rank", low=1, high=1024),
        alpha=section.number("alpha", above=0, high=1e6),
        dropout=section.number("dropout", low=0, below=1, default=0.0),
        targets=read_targets(section),
    )


def read_targets(section: Reader) -> tuple[str, ...]:
    """``targets``: names of modules, none twice."""
    targets: list[str] = []
    for index, item in enumerate(section.items("targets")):
        key = f"targets[{index}]"
        if not isinstance(item, str) or _TARGET.fullmatch(item) is None:
            section.fault(key, "must be the name of a module: letters, digits, dots, underscores")
        elif item in targets:
            section.fault(key, f"{item!r} is named twice")
        else:
            targets.append(item)
    return tuple(targets)
