"""Lists of operations, made by hypothesis, on a real coordinator and real site agents with one manual clock.

This test fails when, after any operation:

- the sum of a committed round is not exactly the indicator of the sites that it says were counted: an update that is in
  it twice, one that is not, one of another attempt, or one whose weight, tokens or losses are others;
- a site whose upload was accepted with a receipt is not in the sum of its exchange, though that was committed;
- a site used one mask seed for two vectors, or masked two payloads in one exchange;
- a site signed or sent two different statements of one kind (M1, M3, M5, M7, M9) in one exchange;
- a site sent M9 for one payload in two exchanges, or in an exchange in which it masked nothing;
- the coordinator unmasked one exchange over two sets of survivors;
- a machine met an event that its table does not list, the driver's step raised, an agent's loop raised what it does not
  know, a task died unheard, or an error was logged that no operation explains (a killed trainer, a full disk);

and when, once everything rests:

- two sums of one round were unmasked over different sites that share one, or a site revealed for two sets of survivors;
- a site holds or acknowledged another public state than the coordinator committed;
- coordinator and sites disagree on who was counted;
- an audit log does not verify;

and when, in the end, everything that can be mended was mended, an hour passed, and:

- the run has not ended, and no site is missing for good either (revoked, or its steward said no);
- the run does not say what it waits for;
- a run is over, and a site that could hear so still has a job folder or the key of an exchange of it.

A coordinator that was set back to an older copy of its folder may disagree with the sites on what was committed, and
its run need not end; everything about masks, statements, reveals and sums holds against it all the same.

What it does not show: power cuts (what was written stays written), several machines with clocks of their own,
PostgreSQL, real sockets and processes, and hostile cryptography. See docs/decisions/0021.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.simulation.invariants import BrokenInvariantError
from tests.simulation.operations import OPERATIONS, Operation, lists, play, scenarios, to_text
from tests.simulation.scenario import Scenario
from tests.simulation.world import World, instrumented

N_OPERATIONS = int(os.environ.get("WARDROUND_SIMULATION_OPERATIONS") or ("20000" if os.environ.get("CI") else "2000"))
LIST_LENGTH = 100
"""Long enough that rounds end and begin under fire; hypothesis cuts a failing list down to what is needed."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with instrumented():
        yield tmp_path_factory.mktemp("simulation")


@pytest.mark.timeout(1800)
def test_operations_in_any_order_break_no_invariant(root: Path) -> None:
    performed: Counter[str] = Counter()
    endings: Counter[str] = Counter()

    # Where CI is set, hypothesis's own profile for it draws the same lists each time and keeps none.
    @settings(max_examples=-(-N_OPERATIONS // LIST_LENGTH), deadline=None, suppress_health_check=list(HealthCheck))
    @given(scenario=scenarios(), operations=lists(LIST_LENGTH))
    def play_list(scenario: Scenario, operations: list[Operation]) -> None:
        world = World(root, scenario)
        try:
            play(world, operations, count=lambda name: performed.update([name]))
            endings.update([world.run_state() if world.is_over() else "WAITING", *["round committed"] * world.n_judged])
        except BrokenInvariantError as broken:
            kept = to_text(scenario, operations, why="say here what it does")
            raise AssertionError(f"{broken}\nto be kept in tests/simulation/reproductions/:\n{kept}") from broken
        finally:
            world.close()

    play_list()
    print(f"operations performed: {performed.total()}, {dict(endings)}, {dict(performed.most_common())}")
    assert performed.total() >= N_OPERATIONS
    assert set(performed) == set(OPERATIONS), "every operation was drawn"
    assert endings["round committed"] > N_OPERATIONS // 400, "the lists leave rounds the time to be committed"
    assert endings["COMPLETED"] > 0
