"""Which layouts adapters of embeddings may have. Pure.

Why a sum over few sites protects them: an embedding has no component that is zero by design, so each record, whether an
image or a text, moves every element of these matrices. An adapter with one matrix for images and another for texts
would not be such: a site without images would add zeros to the first, and a sum over three sites could be one site's
own.
"""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.errors import AdapterLayoutSparseError


def check_attention(layout: AdapterLayout) -> None:
    """Check for two square matrices and two vectors of one dimension.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    d = _dimension(layout, "adapter.W1")
    _check(layout, {"adapter.W1": (d, d), "adapter.W2": (d, d), "adapter.b1": (d,), "adapter.b2": (d,)})


def check_joint_projection(layout: AdapterLayout) -> None:
    """Check for one square matrix and one number.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    d = _dimension(layout, "adapter.projection")
    _check(layout, {"adapter.projection": (d, d), "adapter.log_scale": (1,)})


def _dimension(layout: AdapterLayout, name: str) -> int:
    shape = next((tensor.shape for tensor in layout.tensors if tensor.name == name), (0,))
    return shape[0] if shape else 0


def _check(layout: AdapterLayout, expected: Mapping[str, tuple[int, ...]]) -> None:
    for tensor in layout.tensors:
        if expected.get(tensor.name) != tensor.shape:
            raise AdapterLayoutSparseError("the tensor is none of this kind of adapter", tensor=tensor.name[:200])
    missing = sorted(expected.keys() - {tensor.name for tensor in layout.tensors})
    if missing:
        raise AdapterLayoutSparseError("the adapter lacks a tensor of its kind", tensor=missing[0])
