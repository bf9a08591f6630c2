"""A coordinator that forgets: set back to a copy of its folder, as a restored virtual machine is, in each phase.

It then runs the same exchanges again, under the same numbers, with one site fewer; whoever answered it as if nothing
had been would be in two sums that differ by that site's update. The test fails when a site uses a mask seed for two
vectors, signs or sends two statements of one kind in one exchange, reveals one payload in two, or two sums of one round
share a site. It is asked of sites that demand proofs of the coordinator's log as well as of sites that do not, since
those proofs refuse most of it before the other defences are asked. And it fails when nothing was revealed before the
coordinator was set back, since then it would show nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.invariants import check_rest
from tests.simulation.operations import live_until
from tests.simulation.scenario import Scenario
from tests.simulation.world import World, instrumented

PHASES = ("NONE", "TRAINING", "ADVERTISING", "SHARING", "COLLECTING", "CONFIRMING", "REVEALING")
LEAVER = "beta"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with instrumented():
        yield tmp_path_factory.mktemp("set-back")


@pytest.mark.parametrize("is_witnessed", [False, True], ids=["unwitnessed", "witnessed"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("is_settled", [False, True], ids=["revealed", "settled"])
def test_coordinator_set_back_gets_no_second_sum(
    phase: str, root: Path, *, is_settled: bool, is_witnessed: bool
) -> None:
    world = World(root, Scenario(n_sites=5, rounds=1, is_witnessed=is_witnessed))
    try:
        if phase != "NONE":
            live_until(world, PHASES.index(phase) - 1)
            assert world.phase() == phase
        world.copy_coordinator()
        live_until(world, 5)
        for _ in range(200):
            if is_settled or any(kind == "M9" for kind, _, _ in world.evidence.sent):
                break
            for name in world.scenario.names:
                world.turn(name)
            world.drive()
            # Whoever waits before asking again has waited.
            world.advance(1.0)
        if is_settled:
            world.rest(for_s=60.0)
        n_revealed = len(world.evidence.revealed)
        assert n_revealed > 0
        world.set_back_coordinator()
        world.kill_site(LEAVER)
        for _ in range(3):
            world.rest(for_s=60.0)
            world.advance(400.0)
            check_rest(world)
    finally:
        world.close()
