"""What a site demands of an adapter's layout before it takes part: one row a kind of adapter. Pure.

A sum over few sites protects a tensor only where every site moves all of it. Each kind says why its tensors are such;
one that cannot is not summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_protocol.spec.adapters import (
    AdapterKind,
    AdapterSpec,
    FullSpec,
    Ia3Spec,
    LoraSpec,
    PrefixSpec,
    PromptSpec,
    PublishedCodesSpec,
)
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.code_list_layout import check_code_list
from fl_protocol.tensors.dense_full import check_dense_full
from fl_protocol.tensors.dense_lora import check_dense_lora
from fl_protocol.tensors.dense_vectors import check_rescaling, check_virtual_tokens
from fl_protocol.tensors.embedding_layouts import check_attention, check_joint_projection
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


def _check_virtual_tokens(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    assert isinstance(adapter, PromptSpec | PrefixSpec), "the table says so"
    check_virtual_tokens(layout, virtual_tokens=adapter.virtual_tokens)


def _check_ia3(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    assert isinstance(adapter, Ia3Spec), "the table says so"
    check_rescaling(layout, targets=adapter.targets)


def _check_full(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    assert isinstance(adapter, FullSpec), "the table says so"
    check_dense_full(layout)


def _check_published_codes(layout: AdapterLayout, adapter: AdapterSpec) -> None:
    assert isinstance(adapter, PublishedCodesSpec), "the table says so"
    check_code_list(layout)


_LAYOUT_RULES: Mapping[AdapterKind, Callable[[AdapterLayout, AdapterSpec], None]] = {
    AdapterKind.LORA: _check_lora,
    AdapterKind.PROMPT: _check_virtual_tokens,
    AdapterKind.PREFIX: _check_virtual_tokens,
    AdapterKind.IA3: _check_ia3,
    AdapterKind.FULL: _check_full,
    AdapterKind.PUBLISHED_CODES: _check_published_codes,
    AdapterKind.ATTENTION: lambda layout, _: check_attention(layout),
    AdapterKind.JOINT_PROJECTION: lambda layout, _: check_joint_projection(layout),
}
