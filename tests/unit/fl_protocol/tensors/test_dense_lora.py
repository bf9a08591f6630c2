"""Layouts that may be summed, and every kind that may not."""

from __future__ import annotations

import pytest

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.dense_lora import check_dense_lora
from fl_protocol.tensors.errors import AdapterLayoutSparseError

# As peft names them on a Llama: q_proj is 576 x 576, v_proj 192 x 576, mlp.down_proj 576 x 1536.
ATTENTION = "base_model.model.model.layers.0.self_attn"
MLP = "base_model.model.model.layers.0.mlp"
TARGETS = ("q_proj", "v_proj", "mlp.down_proj")
PAIRS = {
    f"{ATTENTION}.q_proj.lora_A.weight": (8, 576),
    f"{ATTENTION}.q_proj.lora_B.weight": (576, 8),
    f"{ATTENTION}.v_proj.lora_A.weight": (8, 576),
    f"{ATTENTION}.v_proj.lora_B.weight": (192, 8),
    f"{MLP}.down_proj.lora_A.weight": (8, 1536),
    f"{MLP}.down_proj.lora_B.weight": (576, 8),
}


def layout_of(shapes: dict[str, tuple[int, ...]]) -> AdapterLayout:
    tensors = tuple(TensorSpec(name=name, shape=shape) for name, shape in shapes.items())
    return AdapterLayout(kind="lora", tensors=tensors, peft_config={})


def test_layout_pairs_on_linear_modules_may_be_summed() -> None:
    check_dense_lora(layout_of(PAIRS), rank=8, targets=TARGETS)


@pytest.mark.parametrize(
    ("added", "culprit"),
    [
        ({"base_model.model.model.embed_tokens.weight": (49152, 576)}, "embed_tokens.weight"),
        ({"base_model.model.model.embed_tokens.modules_to_save.weight": (49152, 576)}, "modules_to_save.weight"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (8, 49152)}, "lora_embedding_A"),
        ({f"{ATTENTION}.q_proj.weight": (576, 576)}, "q_proj.weight"),
        ({f"{ATTENTION}.q_proj.bias": (576,)}, "q_proj.bias"),
        ({f"{ATTENTION}.k_proj.lora_A.weight": (8, 576)}, "k_proj.lora_A.weight"),
        ({f"{ATTENTION}.q_proj.lora_C.weight": (8, 8)}, "lora_C.weight"),
        ({"another.q_proj.lora_A.weight": (8, 576)}, "another.q_proj.lora_A.weight"),
        ({"x.q_proj.lora_A.weight": (576, 576), "x.q_proj.lora_B.weight": (576, 576)}, "x.q_proj.lora_A.weight"),
        ({"x.q_proj.lora_A.weight": (8, 576), "x.q_proj.lora_B.weight": (8, 576)}, "x.q_proj.lora_B.weight"),
        ({"x.q_proj.lora_A.weight": (8,), "x.q_proj.lora_B.weight": (576, 8)}, "x.q_proj.lora_A.weight"),
        ({"not_q_proj.lora_A.weight": (8, 576), "not_q_proj.lora_B.weight": (576, 8)}, "not_q_proj.lora_A.weight"),
    ],
)
def test_layout_with_another_tensor_is_refused_by_its_name(added: dict[str, tuple[int, ...]], culprit: str) -> None:
    with pytest.raises(AdapterLayoutSparseError) as refused:
        check_dense_lora(layout_of({**PAIRS, **added}), rank=8, targets=TARGETS)
    assert str(refused.value.facts["tensor"]).endswith(culprit)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "transformer.wte", "shared", "wte.q_proj"])
def test_layout_of_an_embedding_or_a_head_is_refused_even_where_the_run_names_it(module: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        f"base_model.model.{module}.lora_A.weight": (8, 576),
        f"base_model.model.{module}.lora_B.weight": (49152, 8),
    }
    with pytest.raises(AdapterLayoutSparseError):
        check_dense_lora(layout_of(shapes), rank=8, targets=(module,))
