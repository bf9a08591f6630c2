"""Whole models are summed only where each row of their one table of tokens moves in each step."""

from __future__ import annotations

import pytest

from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.dense_full import MAX_PARAMETERS, check_dense_full
from fl_protocol.tensors.errors import AdapterLayoutSparseError
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.testing.run_specs import run_spec_document

TABLE = ("model.embed_tokens.weight", (40, 8))
LAYER = ("model.layers.0.self_attn.q_proj.weight", (8, 8))


def layout_of(*tensors: tuple[str, tuple[int, ...]]) -> AdapterLayout:
    specs = tuple(TensorSpec(name=name, shape=shape) for name, shape in tensors)
    return AdapterLayout(kind="full", tensors=specs, peft_config={})


def test_small_model_with_one_tied_table_may_be_summed() -> None:
    check_dense_full(layout_of(TABLE, LAYER))


@pytest.mark.parametrize(
    "tensors",
    [
        (LAYER,),
        (TABLE, ("lm_head.weight", (40, 8))),
        (TABLE, ("model.embed_positions.weight", (64, 8))),
        (("transformer.wte.weight", (40, 8)), ("transformer.wpe.weight", (64, 8))),
        (TABLE, ("encoder.embed_tokens.weight", (40, 8))),
        (TABLE, ("model.wide.weight", (MAX_PARAMETERS, 1))),
    ],
)
def test_layout_with_rows_that_one_site_may_move_alone_is_refused(
    tensors: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    with pytest.raises(AdapterLayoutSparseError):
        check_dense_full(layout_of(*tensors))


def test_layout_is_checked_by_the_kind_of_the_run() -> None:
    task = {"kind": "concept-timeline", "vocabulary_sha256": "cd" * 32}
    full = parse_run_spec(run_spec_document({"task": task, "adapter": {"kind": "full"}})).adapter
    check_layout(layout_of(TABLE, LAYER), full)
    with pytest.raises(AdapterLayoutSparseError):
        check_layout(layout_of(TABLE, ("lm_head.weight", (40, 8))), full)
    with pytest.raises(AdapterLayoutSparseError):
        check_layout(layout_of(TABLE, LAYER), parse_run_spec(run_spec_document()).adapter)
