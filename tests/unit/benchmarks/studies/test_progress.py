from __future__ import annotations

import io

import pytest

from benchmarks.studies.progress import Pace, TableProgress, Work, duration_text


def test_time_left_counts_steps_and_records_each_at_its_pace() -> None:
    pace = Pace()
    assert pace.time_left(Work(steps=5, records=5)) is None
    pace.observe(Work(steps=4, records=0), 8.0)
    pace.observe(Work(steps=0, records=20), 5.0)
    assert pace.time_left(Work(steps=10, records=40)) == pytest.approx(10 * 2.0 + 40 * 0.25)


def test_step_is_taken_as_three_evaluations_of_its_records_while_one_of_both_is_unknown() -> None:
    evaluated, trained = Pace(records_a_step=4), Pace(records_a_step=4)
    evaluated.observe(Work(steps=0, records=10), 5.0)
    assert evaluated.time_left(Work(steps=6, records=2)) == pytest.approx(6 * 12 * 0.5 + 2 * 0.5)
    trained.observe(Work(steps=2, records=0), 12.0)
    assert trained.time_left(Work(steps=1, records=6)) == pytest.approx(6.0 + 6 * 0.5)


def test_progress_says_what_is_left_and_not_every_step() -> None:
    stream = io.StringIO()
    now = [0.0]
    progress = TableProgress(stream, clock=lambda: now[0])
    progress.begin(Work(steps=100, records=0), records_a_step=4)
    progress.cell("[1/2] federated")
    for _ in range(50):
        now[0] += 1.0
        progress.did(Work(steps=1, records=0), 1.0, what="TRAINING")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  [1/2] federated"
    assert len(lines) == 6, "one line in ten seconds"
    assert lines[-1] == "  [1/2] federated: TRAINING; about 50 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3660, "1 h 1 min"), (3599.6, "1 h 0 min")]
)
def test_duration_is_said_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
