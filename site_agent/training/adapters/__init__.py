"""Kinds of adapters in the trainer: one file a kind, and one row of the table a kind."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.spec.adapters import AdapterKind
from site_agent.training.adapters.adapter_half import AdapterHalf
from site_agent.training.adapters.embedding import ATTENTION, JOINT_PROJECTION
from site_agent.training.adapters.full import FULL
from site_agent.training.adapters.ia3 import IA3
from site_agent.training.adapters.lora import LORA
from site_agent.training.adapters.published_codes import PUBLISHED_CODES
from site_agent.training.adapters.virtual_tokens import PREFIX, PROMPT

ADAPTERS: Mapping[AdapterKind, AdapterHalf] = {
    AdapterKind.LORA: LORA,
    AdapterKind.PROMPT: PROMPT,
    AdapterKind.PREFIX: PREFIX,
    AdapterKind.IA3: IA3,
    AdapterKind.FULL: FULL,
    AdapterKind.PUBLISHED_CODES: PUBLISHED_CODES,
    AdapterKind.ATTENTION: ATTENTION,
    AdapterKind.JOINT_PROJECTION: JOINT_PROJECTION,
}
"""Every kind that this trainer can put on a model."""
