"""Lists that failed once, each with the reason why, played again. What fails them: see ``test_operations``.

A list that says how the run ``ends`` fails also when it ends otherwise, or not at all.
"""

from __future__ import annotations

import json
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
    text = kept.read_text()
    scenario, operations = from_text(text)
    world = World(root, scenario)
    try:
        play(world, operations)
        ends = json.loads(text).get("ends")
        assert ends in {None, world.run_state()}, world.says()
    finally:
        world.close()
