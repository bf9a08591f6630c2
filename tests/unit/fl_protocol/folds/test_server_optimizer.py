from __future__ import annotations

import numpy as np

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.server_optimizer import SERVER_OPTIMIZERS
from fl_protocol.spec.run_spec_parts import AlgorithmName, ServerOptimizerName


def test_tables_have_a_row_for_every_name_that_a_spec_may_say() -> None:
    assert set(ALGORITHMS) == {name.value for name in AlgorithmName}
    assert set(SERVER_OPTIMIZERS) == {name.value for name in ServerOptimizerName}


def test_fedavg_adds_the_mean_update_in_float32() -> None:
    theta = {"a": np.array([1.0, 16777216.0], np.float32)}
    mean = {"a": np.array([2.0**-25, 1.0], np.float32)}
    step = SERVER_OPTIMIZERS["fedavg"](theta, mean, {"s": np.ones(1)})
    # Both additions round back to theta: the sum is taken in float32 and nowhere wider.
    assert step.adapter["a"].tolist() == [1.0, 16777216.0]
    assert step.adapter["a"].dtype == np.float32
    assert step.server["s"].tolist() == [1.0]
    assert theta["a"].tolist() == [1.0, 16777216.0]
