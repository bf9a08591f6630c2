"""The simulation's eyes: each kind of failure, made on purpose, is seen. Without this its silence would say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from coordinator.aggregation.accumulator import RingAccumulator
from coordinator.services import aggregate_round
from tests.simulation.evidence import Evidence
from tests.simulation.invariants import BrokenInvariantError, check_now
from tests.simulation.scenario import Scenario
from tests.simulation.world import World, instrumented

CONTEXT, OTHER_CONTEXT = b"exchange 1", b"exchange 2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with instrumented():
        yield tmp_path_factory.mktemp("invariants")


def seen_after(root: Path, *, changes_unit_by: int) -> str:
    """What is seen of a coordinator that changes the first site's unit in the unmasked sum."""
    judge = aggregate_round.judge_sum

    def changed(vector: object, *rest: object, **named: object) -> object:
        vector.ring32[0] = int(vector.ring32[0]) + changes_unit_by  # type: ignore[attr-defined]
        return judge(vector, *rest, **named)  # type: ignore[arg-type]

    world = World(root, Scenario(n_sites=4, rounds=1))
    try:
        with mock.patch.object(aggregate_round, "judge_sum", changed):
            world.rest(for_s=30.0)
        with pytest.raises(BrokenInvariantError) as caught:
            check_now(world)
        return str(caught.value)
    finally:
        world.close()


def test_update_counted_twice_is_seen_as_two(root: Path) -> None:
    assert "'adapter_update': ([2, 1, 1" in seen_after(root, changes_unit_by=1)


def test_update_left_out_is_seen_as_zero(root: Path) -> None:
    assert "'adapter_update': ([0, 1, 1" in seen_after(root, changes_unit_by=-1)


def test_upload_added_twice_is_seen(root: Path) -> None:
    add = RingAccumulator.add

    def add_twice(accumulator: RingAccumulator, chunks: Iterator[memoryview]) -> None:
        held = [bytes(chunk) for chunk in chunks]
        for _ in range(2):
            add(accumulator, iter([memoryview(chunk) for chunk in held]))

    world = World(root, Scenario(n_sites=4, rounds=1))
    try:
        with mock.patch.object(RingAccumulator, "add", add_twice):
            world.rest(for_s=30.0)
        # Masks that were added twice and removed once leave noise: the coordinator itself refuses such a sum.
        assert world.ask("SELECT DISTINCT reason FROM exchanges WHERE state = 'FAILED'") == [("implausible-sum",)]
        assert not world.n_judged
    finally:
        world.close()


@pytest.mark.parametrize("vectors", [(b"x", b"x"), (b"x", b"y")])
def test_mask_seed_is_seen_with_a_second_vector_only(vectors: tuple[bytes, bytes]) -> None:
    evidence = Evidence()
    for vector in vectors:
        evidence.note_mask_key("alpha", b"seed", vector)
        evidence.note_mask_key("beta", b"seed", b"the other end of the pair")
    assert bool(evidence.violations) is (vectors[0] != vectors[1])


@pytest.mark.parametrize("kind", ["M1", "M3", "M5", "M7", "M9"])
def test_second_statement_in_one_exchange_is_seen(kind: str) -> None:
    evidence = Evidence()
    evidence.note_statement(kind, "alpha", CONTEXT, b"one")
    evidence.note_statement(kind, "alpha", OTHER_CONTEXT, b"another")
    evidence.note_statement(kind, "beta", CONTEXT, b"a third")
    assert evidence.violations == []
    evidence.note_statement(kind, "alpha", CONTEXT, b"another")
    assert evidence.violations == [f"alpha signed two different {kind} in one exchange"]


def test_second_set_of_survivors_in_one_exchange_is_seen() -> None:
    evidence = Evidence()
    evidence.note_unmasking(b"M0", (0, 0), ("alpha", "beta", "gamma"))
    evidence.note_unmasking(b"M0", (0, 0), ("alpha", "beta", "gamma"))
    assert evidence.violations == []
    evidence.note_unmasking(b"M0", (0, 0), ("alpha", "beta"))
    assert len(evidence.violations) == 1
