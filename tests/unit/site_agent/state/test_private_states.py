from __future__ import annotations

from pathlib import Path

import pytest

from fl_protocol.ids import RunId
from fl_protocol.spec.context import RoundContext
from site_agent.state.private_states import PrivateStates

RUN = RunId("run-" + "a" * 26)
OTHER = RunId("run-" + "b" * 26)


def round_of(index: int, attempt: int = 0, run_id: RunId = RUN) -> RoundContext:
    return RoundContext(run_id=run_id, round_index=index, round_attempt=attempt)


@pytest.fixture
def states(tmp_path: Path) -> PrivateStates:
    return PrivateStates(tmp_path / ".private")


def test_offer_becomes_current_only_where_the_round_counted_the_site(states: PrivateStates) -> None:
    assert states.current(RUN) is None
    states.offer(round_of(0), b"of round 0")
    assert states.current(RUN) is None
    states.decide(round_of(0), is_counted=True)
    assert states.current(RUN) == b"of round 0"
    states.offer(round_of(1), b"of round 1")
    states.decide(round_of(1), is_counted=False)
    assert states.current(RUN) == b"of round 0"


def test_decision_that_is_made_again_changes_nothing(states: PrivateStates) -> None:
    states.offer(round_of(0), b"kept")
    for is_counted in (True, True, False):
        states.decide(round_of(0), is_counted=is_counted)
        assert states.current(RUN) == b"kept"


def test_offer_of_another_attempt_is_not_taken_and_goes(states: PrivateStates, tmp_path: Path) -> None:
    states.offer(round_of(3, 0), b"attempt 0")
    states.offer(round_of(3, 1), b"attempt 1")
    states.offer(round_of(12, 0), b"a later round")
    states.decide(round_of(3, 1), is_counted=True)
    assert states.current(RUN) == b"attempt 1"
    left = {path.name for path in (tmp_path / ".private" / RUN).iterdir()}
    assert left == {"current.safetensors", "offered-12.0.safetensors"}


def test_counted_round_without_an_offer_leaves_the_current_one(states: PrivateStates) -> None:
    states.offer(round_of(0), b"of round 0")
    states.decide(round_of(0), is_counted=True)
    states.decide(round_of(1), is_counted=True)
    assert states.current(RUN) == b"of round 0"


def test_files_are_the_owners_alone(states: PrivateStates, tmp_path: Path) -> None:
    states.offer(round_of(0), b"x")
    states.decide(round_of(0), is_counted=True)
    states.offer(round_of(1), b"y")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / ".private").rglob("*.safetensors")}
    assert modes == {0o600}


def test_runs_that_are_over_are_forgotten_and_others_kept(states: PrivateStates) -> None:
    for run_id in (RUN, OTHER):
        states.offer(round_of(0, run_id=run_id), run_id.encode())
        states.decide(round_of(0, run_id=run_id), is_counted=True)
    states.forget_all_but({OTHER})
    assert states.current(RUN) is None
    assert states.current(OTHER) == OTHER.encode()
    states.forget(OTHER)
    assert states.current(OTHER) is None
    states.decide(round_of(1, run_id=OTHER), is_counted=True)
