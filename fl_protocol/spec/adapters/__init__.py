"""Adapter kinds as a RunSpec says them. A new kind is one file here and one row in the table.

What a site demands of its layout is one row in ``fl_protocol/tensors/layout_rules.py``, and how it is put on a model
one row in ``site_agent/training/adapters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.adapters.embedding import (
    AttentionSpec,
    JointProjectionSpec,
    read_attention,
    read_joint_projection,
)
from fl_protocol.spec.adapters.full import FullSpec, read_full
from fl_protocol.spec.adapters.ia3 import Ia3Spec, read_ia3
from fl_protocol.spec.adapters.lora import LoraSpec, read_lora
from fl_protocol.spec.adapters.published_codes import PublishedCodesSpec, read_published_codes
from fl_protocol.spec.adapters.virtual_tokens import PrefixSpec, PromptSpec, read_prefix, read_prompt
from fl_protocol.spec.faults import Reader

__all__ = [
    "ADAPTER_READERS",
    "AdapterDigests",
    "AdapterKind",
    "AdapterSpec",
    "AttentionSpec",
    "FullSpec",
    "Ia3Spec",
    "JointProjectionSpec",
    "LoraSpec",
    "PrefixSpec",
    "PromptSpec",
    "PublishedCodesSpec",
]

ADAPTER_READERS: Mapping[AdapterKind, Callable[[Reader, AdapterDigests], AdapterSpec]] = {
    AdapterKind.LORA: read_lora,
    AdapterKind.PROMPT: read_prompt,
    AdapterKind.PREFIX: read_prefix,
    AdapterKind.IA3: read_ia3,
    AdapterKind.FULL: read_full,
    AdapterKind.PUBLISHED_CODES: read_published_codes,
    AdapterKind.ATTENTION: read_attention,
    AdapterKind.JOINT_PROJECTION: read_joint_projection,
}
"""Reads the rest of a section ``adapter`` whose ``kind`` is known."""
