"""What of a trainer's progress may leave: steps of the run, forward only. A trainer that is taken over chooses them."""

from __future__ import annotations

import pytest

from fl_protocol.testing.run_specs import resolved_run_spec
from site_agent.jobs.job_dir import ProgressLine, ProgressState
from site_agent.supervision.progress import ProgressRelay, most_steps

MOST = {ProgressState.LOADING: 1, ProgressState.EVALUATING: 64, ProgressState.TRAINING: 10}


def told(*lines: tuple[str, int, int]) -> list[tuple[str, int, int]]:
    relay = ProgressRelay(None, None, most_steps=MOST)  # type: ignore[arg-type]
    return [
        (state, step, steps)
        for state, step, steps in lines
        if relay._may_tell(ProgressLine(state=ProgressState(state), step=step, steps=steps, at="now"))
    ]


def test_progress_of_an_honest_trainer_is_told() -> None:
    lines = (("loading", 0, 1), ("loading", 1, 1), ("evaluating", 0, 8), ("evaluating", 8, 8), ("training", 0, 10))
    assert told(*lines, ("training", 10, 10)) == [*lines, ("training", 10, 10)]


@pytest.mark.parametrize(
    "line",
    [("training", 5, 11), ("training", 11, 10), ("evaluating", 1, 65), ("loading", 0, 4711), ("training", 7, 9)],
)
def test_numbers_that_are_not_the_runs_are_not_told(line: tuple[str, int, int]) -> None:
    assert told(("training", 0, 10), line) == [("training", 0, 10)]


def test_steps_backwards_are_not_told_again() -> None:
    # A life that goes on from a checkpoint begins before where the last one ended.
    lines = [("training", step, 10) for step in (3, 7, 4, 6, 8)]
    assert [step for _, step, _ in told(*lines)] == [3, 7, 8]
    assert told(("training", 1, 10), ("loading", 0, 1), ("evaluating", 1, 8)) == [("training", 1, 10)]


def test_bounds_are_the_approved_specifications() -> None:
    spec = resolved_run_spec()
    bounds = most_steps(spec)
    assert bounds[ProgressState.TRAINING] == spec.local.steps
    assert bounds[ProgressState.EVALUATING] == spec.evaluation.max_records


def test_bound_is_twice_the_records_where_the_initial_adapter_is_evaluated_too() -> None:
    spec = resolved_run_spec({"evaluation.metrics": ["sites-made-worse"], "evaluation.max_records": 50})
    assert most_steps(spec)[ProgressState.EVALUATING] == 100
