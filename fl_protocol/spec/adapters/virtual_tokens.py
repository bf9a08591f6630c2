"""``adapter: {kind: prompt}`` and ``{kind: prefix}``: trained virtual tokens before a text that a frozen model reads.

``prompt`` is prompt tuning (Lester et al., EMNLP 2021): vectors in place of embeddings. ``prefix`` is prefix tuning (Li
and Liang, ACL 2021) without its reparametrisation: keys and values in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Reader

MAX_VIRTUAL_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec(AdapterSpec):
    """Vectors in place of the embeddings of the first ``virtual_tokens`` tokens."""

    virtual_tokens: int

    @property
    def kind(self) -> AdapterKind:
        """A soft prompt."""
        return AdapterKind.PROMPT

    @property
    def summary(self) -> str:
        """``soft prompt of 8 virtual tokens``."""
        return f"soft prompt of {self.virtual_tokens} virtual tokens"

    def options(self) -> dict[str, object]:
        """Its keys as JSON values."""
        return {"virtual_tokens": self.virtual_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSpec(AdapterSpec):
    """Keys and values of ``virtual_tokens`` tokens in every layer."""

    virtual_tokens: int

    @property
    def kind(self) -> AdapterKind:
        """A prefix."""
        return AdapterKind.PREFIX

    @property
    def summary(self) -> str:
        """``prefix of 8 virtual tokens``."""
        return f"prefix of {self.virtual_tokens} virtual tokens"

    def options(self) -> dict[str, object]:
        """Its keys as JSON values."""
        return {"virtual_tokens": self.virtual_tokens}


def read_prompt(section: Reader, digests: AdapterDigests) -> PromptSpec:
    """``{virtual_tokens}``."""
    return PromptSpec(
        layout_sha256=digests.layout_sha256,
        initial_sha256=digests.initial_sha256,
        virtual_tokens=section.integer("virtual_tokens", low=1, high=MAX_VIRTUAL_TOKENS),
    )


def read_prefix(section: Reader, digests: AdapterDigests) -> PrefixSpec:
    """``{virtual_tokens}``."""
    return PrefixSpec(
        layout_sha256=digests.layout_sha256,
        initial_sha256=digests.initial_sha256,
        virtual_tokens=section.integer("virtual_tokens", low=1, high=MAX_VIRTUAL_TOKENS),
    )
