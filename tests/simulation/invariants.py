"""What must hold, whatever happened: judged from bytes and rows alone, against the scenario's arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fl_protocol.audit.chain import AuditRow
from fl_protocol.audit.verify import AuditFault, verify_log
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.signed import SignedBody
from fl_protocol.testing.entropy import seeded_signer
from site_agent.audit.store import verify_site_log
from site_agent.db.tx import SiteDb
from site_agent.state.joined_round import survivors_digest
from tests.simulation import site_process
from tests.simulation.coordinator_process import SIGNER
from tests.simulation.evidence import round_of_manifest
from tests.simulation.world import World


class BrokenInvariantError(AssertionError):
    """Something that must never happen has happened."""


def check_now(world: World) -> None:
    """After every operation. Raises BrokenInvariantError."""
    found = [*world.evidence.violations, *world.loop.lost, *_of_committed_rounds(world)]
    if found:
        raise BrokenInvariantError("\n".join(found))


def check_rest(world: World) -> None:
    """When everything rests. Raises BrokenInvariantError."""
    check_now(world)
    found = [*_of_unmaskings(world), *_of_reveals(world), *_of_audit_logs(world)]
    if not world.was_set_back:
        # Whoever forgot what it committed knows less than the sites; what they gave away holds all the same.
        found += [*_of_public_states(world), *_of_views(world), *_of_what_is_left(world)]
    if found:
        raise BrokenInvariantError("\n".join(found))


def check_end(world: World) -> None:
    """When everything is mended and rests: the run is over, or says what it waits for. Raises BrokenInvariantError."""
    check_rest(world)
    if world.is_over() or world.was_set_back:
        return
    said = world.says()
    if not _may_wait(world, said):
        raise BrokenInvariantError(f"the run does not end though everything is well; it says: {said}")


def _may_wait(world: World, said: str) -> bool:
    """Whether it may wait for ever: a site that is gone for good, or that said no, cannot be forced."""
    if not said.endswith("."):
        return False
    states = dict(world.ask("SELECT site_id, state FROM sites"))
    words = dict(world.ask("SELECT site_id, decision FROM approvals"))
    n_able = sum(1 for site, state in states.items() if state == "ENROLLED" and words[site] == "approved")
    return n_able < len(states)


def _of_committed_rounds(world: World) -> Iterator[str]:
    query = (
        "SELECT r.round_index, r.round_attempt, e.u3, e.sum_blob_sha256, e.exchange_index, e.exchange_attempt"
        " FROM rounds r JOIN exchanges e ON e.round_index = r.round_index AND e.round_attempt = r.round_attempt"
        " WHERE r.state = 'COMMITTED' AND e.state = 'SUMMED'"
    )
    committed = world.ask(query)
    if len(committed) == world.n_judged:
        return
    indices = [row[0] for row in committed]
    if len(set(indices)) != len(indices):
        yield f"one round was committed twice: {indices}"
    for row in committed:
        yield from _of_sum(world, *row)
    world.n_judged = len(committed)


def _of_sum(
    world: World, index: int, attempt: int, u3: str, blob: str, exchange_index: int, exchange_attempt: int
) -> Iterator[str]:
    sites = json.loads(u3)
    data = (world.folder / "coordinator" / "blobs" / blob[:2] / blob).read_bytes()
    found = world.scenario.read_sum(data, index)
    expected = world.scenario.expected_sum(sites, index, attempt)
    if found != expected:
        wrong = {name: (found.get(name), expected.get(name)) for name in expected if found.get(name) != expected[name]}
        yield f"round {index}.{attempt} over {sites}: found and expected differ in {wrong}"
    place = (index, attempt, exchange_index, exchange_attempt)
    query = (
        "SELECT site_id FROM uploads WHERE round_index = ? AND round_attempt = ? AND exchange_index = ?"
        " AND exchange_attempt = ? AND receipt_body IS NOT NULL"
    )
    receipted = {row[0] for row in world.ask(query, *place)}
    if lost := receipted - set(sites):
        yield f"accepted uploads are lost: {sorted(lost)} have a receipt and are not in the sum of round {place}"
    if missing := set(sites) - receipted:
        yield f"{sorted(missing)} are in the sum of round {place} without a receipt"


def _of_unmaskings(world: World) -> Iterator[str]:
    """Two sums of one round over different sites would differ by somebody's update, or by its evaluation."""
    by_state: dict[int, set[tuple[str, ...]]] = {}
    for manifest, _, _ in world.evidence.unmasked:
        index, _ = round_of_manifest(manifest)
        by_state.setdefault(index, set())
    for (manifest, _, _), sites in world.evidence.unmasked.items():
        by_state[round_of_manifest(manifest)[0]].add(sites)
    for index, sets in by_state.items():
        for first in sets:
            for second in sets - {first}:
                shared = set(first) & set(second)
                if shared:
                    yield f"round {index} was unmasked over {first} and over {second}, which share {sorted(shared)}"


def _of_reveals(world: World) -> Iterator[str]:
    """What a site revealed in one state of the adapter, it revealed for one set of survivors."""
    sets: dict[tuple[str, int], set[str]] = {}
    for name in world.scenario.names:
        for row in _site_rows(world, name, "SELECT round_index, u3_digest FROM joined_rounds WHERE m9_sent"):
            sets.setdefault((name, row[0]), set()).add(row[1])
    for (name, index), digests in sets.items():
        if len(digests) > 1:
            yield f"{name} revealed shares in round {index} for {len(digests)} different sets of survivors"


def _of_public_states(world: World) -> Iterator[str]:
    query = "SELECT state_version_after, state_sha256_after FROM rounds WHERE state = 'COMMITTED' AND kind = 'train'"
    expected = dict(world.ask(query))
    for name in world.scenario.names:
        for version, sha256 in _site_rows(world, name, "SELECT version, sha256 FROM public_states WHERE version > 0"):
            if expected.get(version) != sha256:
                yield f"{name} holds another state v{version} than the coordinator committed"
    for site, sha256, index in world.ask(
        "SELECT p.site_id, p.acknowledged_state_sha256, p.round_index FROM participations p"
        " JOIN rounds r ON r.round_index = p.round_index AND r.round_attempt = p.round_attempt"
        " WHERE r.kind = 'train' AND p.acknowledged_state_sha256 IS NOT NULL"
    ):
        if expected.get(index + 1) != sha256:
            yield f"{site} acknowledged another state of round {index} than was committed"


def _of_views(world: World) -> Iterator[str]:
    """Coordinator and sites agree on who was counted."""
    query = (
        "SELECT e.round_index, e.round_attempt, e.u3 FROM exchanges e JOIN rounds r"
        " ON e.round_index = r.round_index AND e.round_attempt = r.round_attempt"
        " WHERE r.state = 'COMMITTED' AND e.state = 'SUMMED'"
    )
    counted = {(index, attempt): json.loads(u3) for index, attempt, u3 in world.ask(query)}
    for (index, attempt), sites in counted.items():
        parts = dict(
            world.ask(
                "SELECT site_id, state FROM participations WHERE round_index = ? AND round_attempt = ?", index, attempt
            )
        )
        said = {site for site, state in parts.items() if state == "COUNTED"}
        if said != set(sites):
            yield f"round {index}.{attempt}: {sorted(said)} are COUNTED, the sum is over {sites}"
    for name in world.scenario.names:
        rows = _site_rows(
            world,
            name,
            "SELECT round_index, round_attempt, u3_digest FROM joined_rounds WHERE m9_sent AND state = 'settled'",
        )
        for index, attempt, digest in rows:
            sites = counted.get((index, attempt))
            if sites is None or name not in sites or survivors_digest(sites) != digest:
                yield f"{name} settled round {index}.{attempt} over other survivors than the coordinator's {sites}"


def _of_audit_logs(world: World) -> Iterator[str]:
    rows = [
        AuditRow(seq=seq, body=body, leaf_sha256=Sha256Hex(leaf))
        for seq, body, leaf in world.ask("SELECT seq, body, leaf_sha256 FROM audit_events ORDER BY seq")
    ]
    signed = [
        SignedBody(body=body, signature=signature)
        for body, signature in world.ask("SELECT body, signature FROM audit_checkpoints ORDER BY size")
    ]
    verdict = verify_log(rows, signed, SIGNER.spki_der)
    if isinstance(verdict, AuditFault):
        yield f"the coordinator's audit log does not verify: {verdict}"
    for name, folder in world.folders.items():
        database = SiteDb(site_process.engine_at(folder.path / "site.db"))
        found = verify_site_log(database, seeded_signer(name).spki_der, origin=f"site:{name}")
        if isinstance(found, AuditFault):
            yield f"the audit log of {name} does not verify: {found}"


def _of_what_is_left(world: World) -> Iterator[str]:
    """A site that could hear that a round is over keeps nothing of it: no plain update, no key of an exchange."""
    if world.run_state() not in {"COMPLETED", "CANCELLED", "FAILED"} or not world.is_mended:
        return
    able = {site for site, state in world.ask("SELECT site_id, state FROM sites") if state == "ENROLLED"}
    for name, folder in world.folders.items():
        if name not in able:
            continue
        if jobs := [str(path.relative_to(folder.path)) for path in (folder.path / "jobs").glob("run-*/*.*")]:
            yield f"{name} keeps job folders of a run that is over: {jobs}"
        keys = [str(path.relative_to(folder.path)) for path in (folder.path / "journal").glob("run-*/*/key")]
        if keys:
            yield f"{name} keeps keys of exchanges that are over: {keys}"


def _site_rows(world: World, name: str, query: str) -> list[tuple[Any, ...]]:
    return world.ask_site(name, query)
