"""Which adapter layouts may be summed: low-rank pairs on linear modules, and nothing else.

A row of an embedding changes only where a site saw that row's token; in a sum over few sites such a row may be one
site's own, as it is, whatever masks it wore on its way. The halves of a low-rank pair on a linear module are dense:
every record moves all of both. So a layout that has any other tensor is refused before anything is trained; the
trainer, which knows the model, insists on linear modules once more. Pure; knows no model, and an embedding by its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterLayoutSparseError

_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
ONE_ROW_A_TOKEN = frozenset(
    {
        "embed_tokens",
        "embed_positions",
        "embeddings",
        "embed_in",
        "embed_out",
        "lm_head",
        "output_layer",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
"""Modules of usual language models whose weights have one row a token or a position, tied heads among them."""


def check_dense_lora(layout: AdapterLayout, *, rank: int, targets: Sequence[str]) -> None:
    """Check that a layout is low-rank pairs on the targeted modules, and that none of those is an embedding.

    Args:
        layout: of the adapter.
        rank: of the run's adapter.
        targets: the modules that the run names.

    Raises:
        AdapterLayoutSparseError: names the first tensor that is something else.
    """
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    for tensor in layout.tensors:
        reason = _reason_against(tensor, shapes, rank=rank, targets=targets)
        if reason is not None:
            raise AdapterLayoutSparseError(reason, tensor=tensor.name[:200])


def _reason_against(
    tensor: TensorSpec, shapes: dict[str, tuple[int, ...]], *, rank: int, targets: Sequence[str]
) -> str | None:
    half = _HALF.fullmatch(tensor.name)
    if half is None:
        return "an adapter that is summed has only the halves of low-rank pairs (lora_A.weight, lora_B.weight)"
    module = half["module"]
    if not any(module == target or module.endswith(f".{target}") for target in targets):
        return "the run's targets do not name the module of this tensor"
    if ONE_ROW_A_TOKEN.intersection(module.split(".")):
        return "the module is an embedding or a head: a row of its update may show one site's tokens"
    rank_axis = 0 if half["half"] == "A" else 1
    if len(tensor.shape) != 2 or tensor.shape[rank_axis] != rank:
        return "the tensor has not the shape of its half of a pair of the run's rank"
    other = f"{module}.lora_{'B' if rank_axis == 0 else 'A'}.weight"
    return None if other in shapes else "the tensor has no other half"
