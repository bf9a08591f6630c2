"""The layout of a vocabulary: one number a code of a public list, and the check of it. Pure."""

from __future__ import annotations

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterLayoutSparseError

PUBLISHED_TENSOR = "published"


def code_list_layout(n_codes: int, *, kind: str, config: dict[str, object]) -> AdapterLayout:
    """The layout of a list of ``n_codes`` codes."""
    return AdapterLayout(kind=kind, tensors=(TensorSpec(name=PUBLISHED_TENSOR, shape=(n_codes,)),), peft_config=config)


def check_code_list(layout: AdapterLayout) -> None:
    """Check that a layout is one vector.

    It is no update of anybody: what is summed are counts, and what becomes of them is 0 or 1.

    Raises:
        AdapterLayoutSparseError: it is something else.
    """
    if [tensor.name for tensor in layout.tensors] != [PUBLISHED_TENSOR] or len(layout.tensors[0].shape) != 1:
        message = "a vocabulary is one vector of codes"
        raise AdapterLayoutSparseError(message, tensor=layout.tensors[0].name[:200])
