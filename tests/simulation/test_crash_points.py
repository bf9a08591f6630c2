"""Every point at which a party of a round can die is tried, one after the other, by the same rules each time.

The run: four sites, one of which goes away when it is asked for its upload and comes back once the round is committed;
one round of training, one of evaluation, a release. Its boundaries are recorded first: both sides of every ``run_tx``,
of every journal write, of every send and every outbox effect, and between a file's bytes, its rename and its folder's
sync. Then, for each of them: the party dies there, is started again over the same folders, and everything rests.

It fails when, after any such death,

- the adapter's bytes are others than without it, or the counted sites are (a site that died and was replaced by a fresh
  attempt included: the same three are counted again);
- any invariant of ``test_operations`` is broken;
- the run does not end, or the party died at a boundary that the recording does not have;

and when an ``EffectKind``, a journalled ``Step`` or the name of a ``run_tx`` in the source is not among the points and
``NOT_IN_A_ROUND`` does not say why.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import coordinator
import site_agent
from coordinator.services.effect_kinds import EffectKind
from site_agent.session.events import Step
from tests.simulation.invariants import BrokenInvariantError, check_end, check_rest
from tests.simulation.scenario import Scenario
from tests.simulation.world import World, instrumented

SCENARIO = Scenario(n_sites=4, rounds=1, poll_wait_s=20.0)
LEAVER = "delta"
CRASHING_SITE = "alpha"
EXPECTED_COUNTED = {"alpha", "beta", "gamma"}

_ACKNOWLEDGED = "SELECT 1 FROM participations WHERE round_index = 0 AND acknowledged_at IS NOT NULL"

_REST = "a person's call over REST; one transaction each, and no other party waits for it"
_STEWARD = "the steward's command, in a process of its own"
_JANITOR = "after the audit window, long after the round"
_IDENTITY = "the identity loop, beside the rounds; killed at each of its steps in test_identity_keeping"
_RESTORE = "after a restore from a backup only"
NOT_IN_A_ROUND: dict[str, str] = {
    # Coordinator
    "accept-complaint": "a dealer lied, which no site of this run does",
    "refuse-upload": "a site sent bytes that are not those it signed, which none does",
    "decline-round": "a site declined, which none does here; drawn by test_operations",
    "note-effect-failure": "an effect failed; drawn by test_operations, with full disks",
    "note-upload": "beside a stream that lasts; drawn by test_operations, with stalled uploads",
    "note-upload-waits": "more uploads at once than there are places; tested with the upload desk",
    "release-leases": "a driver that ends in order; a death does not",
    "acknowledge-restore": _RESTORE,
    "begin-epoch": _RESTORE,
    "note-head": _RESTORE,
    "begin-grace-anew": "a run's initial state is uploaded, before there is a run",
    "claim-janitor": _JANITOR,
    "release-janitor": _JANITOR,
    "scrub-round": _JANITOR,
    "note-orphans": _JANITOR,
    "take-orphans": _JANITOR,
    "forget-orphans": _JANITOR,
    "forget-markers": _JANITOR,
    "mark-deleted": _JANITOR,
    "probe-audit": "a look at the health, taken back before it is committed",
    "checkpoint_audit": "a signature over the log, by a loop of its own",
    "enrol_site": "before a site is one",
    "invite_site": _REST,
    "renew_certificate": _IDENTITY,
    "check_in": _IDENTITY,
    "rotate_root": "a person's command on the coordinator's host, in a process of its own",
    "change_site_state": _REST,
    "change_run_state": _REST,
    "create_run": _REST,
    "approve_run": "a site's word, before the run or against it; drawn by test_operations",
    "approve_release": _REST,
    "withdraw_release": _REST,
    "set_passphrase": _REST,
    "reset_passphrase": _REST,
    "note_passphrase": _REST,
    "report_dataset_withdrawn": "a site's word on a dataset, beside the rounds, sent again until it is taken",
    "add_user": _REST,
    "disable_user": _REST,
    "see_external_user": _REST,
    "enable_user": _REST,
    "grant_role": _REST,
    "revoke_role": _REST,
    "create_token": _REST,
    "revoke_token": _REST,
    "note_token_use": _REST,
    "reserve_answer": _REST,
    "keep_answer": _REST,
    "release_answer": _REST,
    # Site
    "record-process": "the daemon starts or stops in order",
    "record_pending_run": "before the run is approved",
    "record_denial": "before the run is approved",
    "record-invalid-run": "documents that are not those of the digest, which this coordinator does not send",
    "record_identity": _IDENTITY,
    "decide_run": _STEWARD,
    "withdraw_run": _STEWARD,
    "check_dataset": _STEWARD,
    "record-policy": "the policy file, which this run's judge does not have; tested with the policy desk",
    "record-evaluation": "as above",
    "end_run": "the coordinator cancelled the run or gave it up, which it does not here; tested with the approval loop",
    "mark_statement_sent": "the approval loop, beside the rounds",
    "set_paused": _STEWARD,
    "release-reveals": _STEWARD,
    "change_peers": _STEWARD,
    "record_enrolment": _STEWARD,
    "register_dataset": _STEWARD,
    "withdraw_dataset": _STEWARD,
}
"""Transactions that the enumerated run does not have, each with the reason."""


@dataclass(frozen=True)
class Point:
    """One place to die at: the first time that the party passes it."""

    party: str
    name: str
    is_in_training_round: bool


@dataclass(frozen=True)
class Ending:
    """What must be the same however the run went."""

    state_sha256: str
    counted: frozenset[str]


def live_through(world: World, *, until_settled: bool = False) -> None:
    """The run, whatever happens in it: who is dead is started again at once, the leaver once its round is over."""
    leaver = world.sites[LEAVER]
    if leaver is not None:
        leaver.process.dies_at = ("send UploadBlob: before", 1)
    for _ in range(250):
        if world.coordinator is None:
            world.start_coordinator()
        n_acknowledged = len(world.ask(_ACKNOWLEDGED))
        is_settled = n_acknowledged >= len(EXPECTED_COUNTED)
        for name in world.scenario.names:
            if world.sites.get(name) is None and (name != LEAVER or is_settled):
                world.start_site(name)
        if world.is_over() or (until_settled and is_settled):
            return
        if not world.live():
            world.advance(10.0)
    raise BrokenInvariantError(f"the run does not end; it says: {world.says()}")


def ending_of(world: World) -> Ending:
    state = world.ask("SELECT state_sha256_after FROM rounds WHERE round_index = 0 AND state = 'COMMITTED'")
    counted = world.ask("SELECT site_id FROM participations WHERE round_index = 0 AND state = 'COUNTED'")
    return Ending(state_sha256=state[0][0], counted=frozenset(row[0] for row in counted))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with instrumented():
        yield tmp_path_factory.mktemp("crash-points")


@dataclass(frozen=True)
class Recording:
    """The run without a death."""

    points: tuple[Point, ...]
    ending: Ending


@pytest.fixture(scope="module")
def recording(root: Path) -> Recording:
    world = World(root, SCENARIO)
    try:
        assert world.coordinator is not None
        site = world.sites[CRASHING_SITE]
        assert site is not None
        parties = {"coordinator": world.coordinator.process, CRASHING_SITE: site.process}
        for process in parties.values():
            process.passed = []
        live_through(world, until_settled=True)
        n_in_training = {party: len(process.passed or ()) for party, process in parties.items()}
        live_through(world)
        check_end(world)
        return Recording(
            points=tuple(
                point
                for party, process in parties.items()
                for point in _points(party, process.passed or [], n_in_training[party])
            ),
            ending=ending_of(world),
        )
    finally:
        world.close()


def _points(party: str, passed: list[str], n_in_training: int) -> Iterator[Point]:
    """Each boundary where it is passed for the first time."""
    seen: set[str] = set()
    for place, name in enumerate(passed):
        if name not in seen:
            seen.add(name)
            yield Point(party=party, name=name, is_in_training_round=place < n_in_training)


def die_at(root: Path, point: Point) -> Ending:
    world = World(root, SCENARIO)
    try:
        party = world.coordinator if point.party == "coordinator" else world.sites[point.party]
        assert party is not None
        process = party.process
        process.dies_at = (point.name, 1)
        live_through(world, until_settled=point.is_in_training_round)
        if not process.is_dead:
            raise BrokenInvariantError("the party did not pass the point")
        if point.is_in_training_round:
            check_rest(world)
        else:
            check_end(world)
        return ending_of(world)
    finally:
        world.close()


def test_run_without_a_death_counts_those_who_stayed(recording: Recording) -> None:
    assert recording.ending.counted == EXPECTED_COUNTED


@pytest.mark.timeout(1800)
def test_party_that_dies_at_any_point_changes_nothing(recording: Recording, root: Path) -> None:
    failures: list[str] = []
    for point in recording.points:
        try:
            ending = die_at(root, point)
        except BrokenInvariantError as broken:
            failures.append(f"{point}: {broken}")
            continue
        if ending != recording.ending:
            failures.append(f"{point}: {ending}, not {recording.ending}")
    by_party = Counter(point.party for point in recording.points)
    print(f"crash points enumerated: {by_party.total()}, {dict(by_party)}")
    assert not failures, f"{len(failures)} of {len(recording.points)}:\n" + "\n".join(failures)


def test_every_effect_step_and_transaction_is_among_the_points(recording: Recording) -> None:
    names = {point.name for point in recording.points}
    wanted = {f"effect {kind.value}: {side}" for kind in EffectKind for side in ("before", "after")}
    wanted |= {f"journal {step.value}: {side}" for step in Step for side in ("before", "after")}
    found = {name for package in (coordinator, site_agent) for name in transactions_in(package.__path__[0])}
    assert found > {"advance-run", "complete-upload", "ensure-revealed"}, "the scan finds what is known to be there"
    wanted |= {f"tx {name}: {side} its commit" for name in found - set(NOT_IN_A_ROUND) for side in ("before", "after")}
    assert not wanted - names, f"never passed: {sorted(wanted - names)}"
    assert not set(NOT_IN_A_ROUND) - found, f"excused, but not in the source: {sorted(set(NOT_IN_A_ROUND) - found)}"


def transactions_in(package: str) -> Iterator[str]:
    """Every name that is given to ``run_tx`` or ``run_tx_async`` in a package."""
    for path in sorted(Path(package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = {"run_tx": 0, "run_tx_async": 0, "take_message": 1}.get(called)
            if place is not None and isinstance(name := node.args[place], ast.Constant):
                yield str(name.value)
