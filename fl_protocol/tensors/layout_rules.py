"""What a site demands of an adapter's layout before it takes part: one row a kind of adapter. Pure.

A sum over few sites protects a tensor only where every site moves all of it. Each kind says why its tensors are such;
one that cannot is not summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.adapters import AdapterKind, AdapterSpec, LoraSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.dense_lora import check_dense_lora
from fl_protocol.tensors.errors import AdapterLayoutSparseError


def check_layout(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    """Check that a layout is one that the run's adapter can have, and that a sum protects it.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    if layout.kind != adapter.kind.value:
        raise AdapterLayoutSparseError("the layout is of another kind of adapter than the run", tensor=layout.kind[:80])
    _LAYOUT_RULES[adapter.kind](layout, adapter)


def _check_lora(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    assert isinstance(adapter, LoraSpec), "the table says so"
    check_dense_lora(layout, rank=adapter.rank, targets=adapter.targets)


_LAYOUT_RULES: Mapping[AdapterKind, Callable[[AdapterLayout, AdapterSpec], None]] = {
    AdapterKind.LORA: _check_lora,
}
