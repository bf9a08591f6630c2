from __future__ import annotations

import pytest

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.dense_vectors import check_rescaling, check_virtual_tokens
from fl_protocol.tensors.errors import AdapterLayoutSparseError

ATTENTION = "base_model.model.model.layers.0.self_attn"
VECTORS = {
    f"{ATTENTION}.k_proj.ia3_l": (192, 1),
    "base_model.model.model.layers.0.mlp.down_proj.ia3_l": (1, 1536),
}
TARGETS = ("k_proj", "mlp.down_proj")


def layout_of(shapes: dict[str, tuple[int, ...]]) -> AdapterLayout:
    tensors = tuple(TensorSpec(name=name, shape=shape) for name, shape in shapes.items())
    return AdapterLayout(kind="x", tensors=tensors, peft_config={})


def test_vectors_on_targeted_modules_may_be_summed() -> None:
    check_rescaling(layout_of(VECTORS), targets=TARGETS)


@pytest.mark.parametrize(
    "added",
    [
        {"base_model.model.lm_head.ia3_l": (49152, 1)},
        {"base_model.model.model.embed_tokens.ia3_l": (49152, 1)},
        {f"{ATTENTION}.q_proj.ia3_l": (576, 1)},
        {f"{ATTENTION}.k_proj.weight": (192, 576)},
        {f"{ATTENTION}.deep.k_proj.ia3_l": (192, 576)},
    ],
)
def test_any_other_tensor_is_refused_by_name(added: dict[str, tuple[int, ...]]) -> None:
    targets = (*TARGETS, "lm_head", "embed_tokens")
    with pytest.raises(AdapterLayoutSparseError) as caught:
        check_rescaling(layout_of({**VECTORS, **added}), targets=targets)
    assert caught.value.facts["tensor"] in added


def test_virtual_tokens_are_one_tensor_with_a_row_each() -> None:
    check_virtual_tokens(layout_of({"prompt_embeddings": (8, 576)}), virtual_tokens=8)


@pytest.mark.parametrize(
    "shapes",
    [
        {"prompt_embeddings": (9, 576)},
        {"prompt_embeddings": (8,)},
        {"prompt_embeddings": (8, 576), "base_model.model.model.embed_tokens.weight": (49152, 576)},
    ],
)
def test_other_tensors_than_virtual_tokens_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(AdapterLayoutSparseError):
        check_virtual_tokens(layout_of(shapes), virtual_tokens=8)
