"""Kinds of adapters in the trainer: one file a kind, and one row of the table a kind."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.spec.adapters import AdapterKind
from site_agent.training.adapters.adapter_half import AdapterHalf
from site_agent.training.adapters.lora import LORA

ADAPTERS: Mapping[AdapterKind, AdapterHalf] = {
    AdapterKind.LORA: LORA,
}
"""Every kind that this trainer can put on a model."""
