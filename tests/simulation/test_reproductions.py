"""Lists that failed once, each with the reason why, played again. What fails them: see ``test_operations``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.operations import from_text, play
from tests.simulation.world import World, instrumented

KEPT = sorted((Path(__file__).parent / "reproductions").glob("*.json"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with instrumented():
        yield tmp_path_factory.mktemp("reproductions")


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_reproduction_played_again_holds_every_invariant(kept: Path, root: Path) -> None:
    scenario, operations = from_text(kept.read_text())
    world = World(root, scenario)
    try:
        play(world, operations)
    finally:
        world.close()
