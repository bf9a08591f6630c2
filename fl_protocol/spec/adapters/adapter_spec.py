"""What every adapter kind says in ``adapter``. Knows no kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.ids import Sha256Hex

PEFT_WEIGHTS_FILE = "adapter_model.safetensors"
WEIGHTS_FILE = "model.safetensors"


class AdapterKind(StrEnum):
    """Which weights are trained."""

    LORA = "lora"
    PROMPT = "prompt"
    PREFIX = "prefix"
    IA3 = "ia3"
    FULL = "full"
    PUBLISHED_CODES = "published-codes"
    ATTENTION = "attention"
    JOINT_PROJECTION = "joint-projection"

    @property
    def weights_file(self) -> str:
        """The file of a release that holds the weights: peft's own name where peft loads them, and only there."""
        return PEFT_WEIGHTS_FILE if self in _LOADED_BY_PEFT else WEIGHTS_FILE


_LOADED_BY_PEFT = frozenset({AdapterKind.LORA, AdapterKind.PROMPT, AdapterKind.PREFIX, AdapterKind.IA3})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec(ABC):
    """``adapter``; the two digests come from ``init-adapter`` and may be absent until then."""

    layout_sha256: Sha256Hex | None
    initial_sha256: Sha256Hex | None

    @property
    @abstractmethod
    def kind(self) -> AdapterKind:
        """Which kind it is."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """The kind and what it is set to, for people: ``LoRA, rank 8, alpha 16, on q_proj, v_proj``."""

    @property
    def low_rank(self) -> int | None:
        """What a site's ``adapters.max_rank`` bounds; None for a kind that has no rank."""
        return None

    @property
    def has_dropout(self) -> bool:
        """Whether the adapter drops some of its input while it is trained."""
        return False

    @abstractmethod
    def options(self) -> dict[str, object]:
        """The kind's own keys as JSON values."""

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {
            "kind": self.kind.value,
            **self.options(),
            "layout_sha256": self.layout_sha256,
            "initial_sha256": self.initial_sha256,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDigests:
    """What a reader of a kind gets besides the section: the two digests, as they were read."""

    layout_sha256: Sha256Hex | None
    initial_sha256: Sha256Hex | None
