from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.folds.public_state import PublicState
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.errors import AdapterTensorError
from fl_protocol.testing.run_specs import resolved_run_spec
from site_agent.training.exchange.fedmed import attention_segments, jensen_shannon, l2_distance
from site_agent.training.local.rule import RoundStart

pytestmark = pytest.mark.training

LAYOUT = AdapterLayout(
    kind="lora", tensors=(TensorSpec(name="a", shape=(2, 2)), TensorSpec(name="b", shape=(3,))), peft_config={}
)
VECTORS = st.lists(st.floats(-30, 30), min_size=5, max_size=5).map(np.array)


def start_of(distance: str, server: dict[str, np.ndarray] | None = None) -> RoundStart:
    spec = resolved_run_spec({"aggregation.algorithm": "fedmed", "aggregation.attention": {"distance": distance}})
    before = {"a": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    state = PublicState(version=2, adapter=before, server=server or {})
    return RoundStart(spec=spec, round_index=2, layout=LAYOUT, state=state, private={})


def test_l2_distances_are_the_norms_of_each_layers_update() -> None:
    after = {"a": np.array([[1, 4], [1, 5]], np.float32), "b": np.array([2, 3, -6], np.float32)}
    segments = attention_segments(start_of("l2"), after)
    # (0, 3, 0, 4) and (2, 3, -6).
    assert segments["layer_distance"].tolist() == [5.0, 7.0]
    assert segments["layer_distance"].dtype == np.float64
    assert segments["is_attentive"].tolist() == [0]


def test_gate_of_the_public_state_is_what_the_site_says() -> None:
    server = {"mediation.is_attentive": np.array([1]), "mediation.last_loss": np.array([1.5])}
    after = dict(start_of("l2").state.adapter)
    assert attention_segments(start_of("l2", server), after)["is_attentive"].tolist() == [1]


def test_js_of_two_softmaxes_is_the_number_worked_out_by_hand() -> None:
    # softmax(0, 0) = (1/2, 1/2), softmax(ln 3, 0) = (3/4, 1/4), m = (5/8, 3/8):
    # JS = (1/2 ln(4/5) + 1/2 ln(4/3) + 3/4 ln(6/5) + 1/4 ln(2/3)) / 2
    by_hand = (math.log(4 / 5) / 2 + math.log(4 / 3) / 2 + 3 / 4 * math.log(6 / 5) + math.log(2 / 3) / 4) / 2
    assert jensen_shannon(np.zeros(2), np.array([math.log(3), 0.0])) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(0.0338220, abs=1e-6)


@given(VECTORS, VECTORS)
def test_js_is_symmetric_and_bounded_by_the_logarithm_of_two(before: np.ndarray, after: np.ndarray) -> None:
    found = jensen_shannon(before, after)
    assert 0.0 <= found <= math.log(2) * (1 + 1e-12)
    assert found == pytest.approx(jensen_shannon(after, before), rel=1e-9, abs=1e-15)


def test_js_reaches_its_bounds() -> None:
    assert jensen_shannon(np.array([3.0, 1.0]), np.array([3.0, 1.0])) == 0.0
    assert jensen_shannon(np.array([800.0, 0.0]), np.array([0.0, 800.0])) == pytest.approx(math.log(2), rel=1e-12)


@given(VECTORS, st.floats(-20, 20))
def test_js_does_not_see_what_all_weights_of_a_layer_have_in_common(before: np.ndarray, shift: float) -> None:
    # That is what softmax does, and why l2 is the default (docs/algorithms.md).
    assert jensen_shannon(before, before + shift) == pytest.approx(0.0, abs=1e-12)


def test_l2_of_equal_vectors_is_zero() -> None:
    assert l2_distance(np.array([1.5, 2.5]), np.array([1.5, 2.5])) == 0.0


def test_js_distances_are_taken_layer_by_layer() -> None:
    after = {"a": np.ones((2, 2), np.float32) * 3, "b": np.array([math.log(3), 0, 0], np.float32)}
    distance = attention_segments(start_of("js"), after)["layer_distance"]
    assert distance[0] == pytest.approx(0.0, abs=1e-12)
    # softmax = (1/3, 1/3, 1/3) against (3/5, 1/5, 1/5), m = (7/15, 4/15, 4/15).
    by_hand = ((math.log(5 / 7) + 2 * math.log(5 / 4)) / 3 + 3 / 5 * math.log(9 / 7) + 2 / 5 * math.log(3 / 4)) / 2
    assert distance[1] == pytest.approx(by_hand, rel=1e-6)


def test_adapter_of_another_layout_is_refused() -> None:
    with pytest.raises(AdapterTensorError):
        attention_segments(start_of("l2"), {"a": np.ones((2, 2), np.float32)})
