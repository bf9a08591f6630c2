"""Adapter kinds as a RunSpec says them. A new kind is one file here and one row in the table.

What a site demands of its layout is one row in ``fl_protocol/tensors/layout_rules.py``, and how it is put on a model
one row in ``site_agent/training/adapters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.adapters.lora import LoraSpec, read_lora
from fl_protocol.spec.faults import Reader

__all__ = ["ADAPTER_READERS", "AdapterDigests", "AdapterKind", "AdapterSpec", "LoraSpec"]

ADAPTER_READERS: Mapping[AdapterKind, Callable[[Reader, AdapterDigests], AdapterSpec]] = {
    AdapterKind.LORA: read_lora,
}
"""Reads the rest of a section ``adapter`` whose ``kind`` is known."""
