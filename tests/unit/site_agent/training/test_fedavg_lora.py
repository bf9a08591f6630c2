from __future__ import annotations

import numpy as np
import pytest

from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterTensorError
from site_agent.training.errors import LossNotFiniteError
from site_agent.training.exchange.fedavg_lora import (
    NOT_EVALUATED,
    EvaluationSums,
    evaluation_segments,
    training_segments,
)
from site_agent.training.local.steps import TrainingSums

pytestmark = pytest.mark.training

LAYOUT = AdapterLayout(
    kind="lora", tensors=(TensorSpec(name="a", shape=(2, 1)), TensorSpec(name="b", shape=(1,))), peft_config={}
)
TRAINED = TrainingSums(loss_sum=12.5, n_tokens=7)
EVALUATED = EvaluationSums(loss_sum=3.25, n_tokens=4, n_records=2)


def adapter(*values: float) -> dict[str, np.ndarray]:
    return LAYOUT.unflatten(np.array(values, dtype=np.float32))


def test_update_is_local_minus_global_in_float32() -> None:
    segments = training_segments(
        LAYOUT,
        local_adapter=adapter(1.5, 2.0, -1.0),
        global_adapter=adapter(1.0, 2.5, 1e-8),
        trained=TRAINED,
        evaluated=EVALUATED,
    )
    expected = np.array([0.5, -0.5, np.float32(-1.0) - np.float32(1e-8)], dtype=np.float32)
    np.testing.assert_array_equal(segments["adapter_update"], expected)
    assert segments["adapter_update"].dtype == np.float32


def test_segments_have_the_names_dtypes_and_values_of_the_contract() -> None:
    segments = training_segments(
        LAYOUT, local_adapter=adapter(1, 1, 1), global_adapter=adapter(0, 0, 0), trained=TRAINED, evaluated=EVALUATED
    )
    assert {name: (value.dtype.name, value.tolist()) for name, value in segments.items()} == {
        "adapter_update": ("float32", [1.0, 1.0, 1.0]),
        "train_loss_sum": ("float64", [12.5]),
        "train_tokens": ("int64", [7]),
        "eval_loss_sum": ("float64", [3.25]),
        "eval_tokens": ("int64", [4]),
        "eval_records": ("int64", [2]),
    }


def test_evaluation_alone_sends_nothing_of_training() -> None:
    assert set(evaluation_segments(EVALUATED)) == {"eval_loss_sum", "eval_tokens", "eval_records"}
    assert {value.tolist()[0] for value in evaluation_segments(NOT_EVALUATED).values()} == {0}


def test_update_that_is_not_finite_is_refused() -> None:
    with pytest.raises(LossNotFiniteError):
        training_segments(
            LAYOUT,
            local_adapter=adapter(np.nan, 0, 0),
            global_adapter=adapter(0, 0, 0),
            trained=TRAINED,
            evaluated=EVALUATED,
        )


def test_adapter_of_another_layout_is_refused() -> None:
    with pytest.raises(AdapterTensorError):
        training_segments(
            LAYOUT,
            local_adapter={"a": np.zeros((2, 1), dtype=np.float32)},
            global_adapter=adapter(0, 0, 0),
            trained=TRAINED,
            evaluated=EVALUATED,
        )
