"""Which layouts of virtual tokens and of rescaling vectors may be summed. Pure; knows no model.

Both are dense as a low-rank pair is (``dense_lora``): every record is read behind all virtual tokens, and every record
passes through all elements of a rescaling vector, so that a sum over few sites holds no row of one site alone. A vector
on an embedding or a head would have one element a token, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.dense_lora import ONE_ROW_A_TOKEN
from fl_protocol.tensors.errors import AdapterLayoutSparseError

VIRTUAL_TOKENS = "prompt_embeddings"
"""The one tensor that peft saves of a soft prompt or a prefix."""

_VECTOR = re.compile(r"(?P<module>.+)\.ia3_l")


def check_virtual_tokens(layout: AdapterLayout, *, virtual_tokens: int) -> None:
    """Check that a layout is one tensor with a row a virtual token.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    for tensor in layout.tensors:
        if tensor.name != VIRTUAL_TOKENS:
            reason = "an adapter of virtual tokens has one tensor (prompt_embeddings)"
            raise AdapterLayoutSparseError(reason, tensor=tensor.name[:200])
        if len(tensor.shape) != 2 or tensor.shape[0] != virtual_tokens:
            reason = "the tensor has not one row a virtual token of the run"
            raise AdapterLayoutSparseError(reason, tensor=tensor.name[:200])


def check_rescaling(layout: AdapterLayout, *, targets: Sequence[str]) -> None:
    """Check that a layout is rescaling vectors on the targeted modules, and that none of those is an embedding.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    for tensor in layout.tensors:
        found = _VECTOR.fullmatch(tensor.name)
        module = "" if found is None else found["module"]
        if found is None:
            reason = "an adapter of this kind has only rescaling vectors (ia3_l)"
        elif not any(module == target or module.endswith(f".{target}") for target in targets):
            reason = "the run's targets do not name the module of this tensor"
        elif ONE_ROW_A_TOKEN.intersection(module.split(".")):
            reason = "the module is an embedding or a head: an element of its update may show one site's tokens"
        elif len(tensor.shape) != 2 or 1 not in tensor.shape:
            reason = "the tensor is no vector"
        else:
            continue
        raise AdapterLayoutSparseError(reason, tensor=tensor.name[:200])
