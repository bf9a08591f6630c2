"""Every effect of the outbox, and every transition, with the driver killed around it: the run ends with the same bytes.

Fails where the repeated effect gives another result, is completed twice or is never taken up again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from coordinator.ca.authority import CertificateAuthority, create_enrolment_identity, create_root
from coordinator.db.models import Exchange, Lease, OutboxEntry, Release, ReleaseFile, Round
from coordinator.db.tx import Database
from coordinator.services.effect_kinds import EffectKind
from coordinator.services.release_adapter import create_release
from coordinator.services.resources import Addresses, Resources
from coordinator.services.turn import TurnOutcome
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.ids import RunId
from fl_protocol.testing.entropy import seeded_signer
from tests.contract.database.conftest import DatabasesOfTest
from tests.contract.database.rows import log_of
from tests.unit.coordinator.services.engine_lab import COORDINATOR, RUN_ID, START, EngineLab

T = TypeVar("T")
_SITES = ("a-site", "b-site", "c-site")


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectSteps:
    """The names of an effect's first look at the database and of the transaction that completes it."""

    begins: str
    completes: str


STEPS: Mapping[EffectKind, EffectSteps] = {
    EffectKind.COMPUTE_SUM: EffectSteps(begins="sum-inputs", completes="complete-sum"),
    EffectKind.FOLD_ROUND: EffectSteps(begins="fold-inputs", completes="complete-fold"),
    EffectKind.CREATE_RELEASE: EffectSteps(begins="find_release", completes="complete-release"),
}


class Boundary(StrEnum):
    """Where the driver dies."""

    BEFORE = "before the effect"
    WORK_DONE = "after its blobs, before its completion"
    COMPLETING = "in the transaction of its completion, before COMMIT"
    COMPLETED = "after its completion"


class KilledError(BaseException):
    """Nothing catches it: as good as a kill for what is in the database and the blobs."""


class KillingDatabase(Database):
    """Dies once at the named boundary, or once in every transition before its COMMIT."""

    def arm(self, steps: EffectSteps, boundary: Boundary) -> None:
        self._armed = (steps, boundary)

    def kill_each_transition_once(self) -> None:
        self._kills_transitions = True

    _armed: tuple[EffectSteps, Boundary] | None = None
    _kills_transitions = False
    _is_repeated = False
    n_kills = 0

    def _die_if(self, boundary: Boundary, name: str) -> None:
        if self._armed is None:
            return
        steps, wanted = self._armed
        if boundary is wanted and name == (steps.begins if boundary is Boundary.BEFORE else steps.completes):
            self._armed = None
            self.n_kills += 1
            raise KilledError

    @staticmethod
    def _has_turned(name: str, result: object) -> bool:
        """Whether a turn of the driver wrote anything: it answers whether its lease is held, and what came of it."""
        if name != "advance-run":
            return False
        assert isinstance(result, tuple)
        assert isinstance(result[1], TurnOutcome)
        return result[1] is not TurnOutcome.NOTHING

    def read(self, name: str, fn: Callable[[Session], T], *, patience_s: float | None = None) -> T:
        self._die_if(Boundary.BEFORE, name)
        return super().read(name, fn, patience_s=patience_s)

    def run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        self._die_if(Boundary.WORK_DONE, name)

        def watched(session: Session) -> T:
            result = fn(session)
            session.flush()
            self._die_if(Boundary.COMPLETING, name)
            if self._kills_transitions and self._has_turned(name, result) and not self._is_repeated:
                self._is_repeated = True
                self.n_kills += 1
                raise KilledError
            return result

        result = super().run_tx(name, watched)
        if self._has_turned(name, result):
            self._is_repeated = False
        self._die_if(Boundary.COMPLETED, name)
        return result


def make_lab(folder: Path, database: Database) -> EngineLab:
    """An engine whose runs end with a real release."""
    lab = EngineLab(folder, _SITES, rounds=1, database=database)
    root, root_key = create_root(consortium="lab", now=START)
    resources = Resources(
        db=lab.db,
        blobs=lab.ctx.blobs,
        authority=CertificateAuthority(certificate=root, key=root_key),
        enrolment_certificate_pem=create_enrolment_identity(now=START).certificate_pem,
        signer=COORDINATOR,
        release_signer=seeded_signer("release"),
        clock=lab.clock,
        addresses=Addresses(gateway="", enrolment=""),
        code_lifetime_s=1.0,
        max_blob_bytes=1 << 20,
    )

    async def release(run_id: RunId) -> None:
        await create_release(resources, run_id)

    # One coordinator has one log, whoever of it writes.
    lab.ctx = replace(lab.ctx, origin=resources.origin)
    lab._release = release
    lab.driver = lab.new_driver()
    return lab


def restart(lab: EngineLab) -> None:
    """Another driver goes on. The dead one's lease ends without the clock, whose hours are in the signed manifests."""
    at = lab.clock.at
    lab.db.run_tx("run-out", lambda session: session.execute(delete(Lease)) and None)
    lab.restart_driver()
    lab.clock.at = at


async def settle_through_kills(lab: EngineLab) -> None:
    for _ in range(400):
        moved = False
        while True:
            try:
                if not await lab.driver.step(RUN_ID):
                    break
            except KilledError:
                restart(lab)
            moved = True
        for site in lab.sites.values():
            moved |= await site.turn()
        if not moved:
            return
    raise AssertionError("the engine does not come to rest")


def outcome(lab: EngineLab) -> dict[str, object]:
    """Everything that a run is for, byte for byte."""

    def look(session: Session) -> dict[str, object]:
        return {
            "sums": list(session.scalars(select(Exchange.sum_blob_sha256).order_by(Exchange.round_index))),
            "results": [
                hashlib.sha256(body).hexdigest()
                for body in session.scalars(select(Exchange.result_body).order_by(Exchange.round_index))
            ],
            "states": list(session.scalars(select(Round.state_sha256_after).order_by(Round.round_index))),
            "attempts": list(session.scalars(select(Round.round_attempt).order_by(Round.round_index))),
            "n_effects": session.scalar(select(func.count()).select_from(OutboxEntry)),
            "n_open": session.scalar(select(func.count()).where(OutboxEntry.done_at.is_(None))),
            "n_releases": session.scalar(select(func.count()).select_from(Release)),
            "adapter": session.scalar(select(ReleaseFile.blob_sha256).where(ReleaseFile.path.endswith(".safetensors"))),
        }

    found = lab.db.read("outcome", look)
    sites = {site.state.digest() for site in lab.sites.values()}
    participations = [sorted(lab.states(index).items()) for index in range(2)]
    return {**found, "run": lab.run().state, "sites": sites, "participations": participations}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    from coordinator.db.models import Base

    folder = tmp_path_factory.mktemp("undisturbed")
    database = Database.from_path(folder / "undisturbed.db")
    Base.metadata.create_all(database.engine)
    lab = make_lab(folder, database)
    asyncio.run(lab.settle())
    found = outcome(lab)
    database.dispose()
    assert found["run"] == "COMPLETED"
    assert (found["n_effects"], found["n_open"], found["n_releases"]) == (5, 0, 1)
    return found


@pytest.fixture
def killing(databases: DatabasesOfTest) -> KillingDatabase:
    return KillingDatabase(databases.open(databases.new_url()).engine)


def assert_log_is_valid(lab: EngineLab) -> None:
    rows, checkpoints = log_of(lab.db)
    assert isinstance(verify_log(rows, checkpoints, COORDINATOR.spki_der), AuditVerified)
    assert sum(b'"round.committed"' in row.body for row in rows) == 2
    assert sum(b'"release.created"' in row.body for row in rows) == 1


def test_every_kind_of_effect_has_its_steps_listed_here() -> None:
    assert set(STEPS) == set(EffectKind)


@pytest.mark.parametrize("boundary", list(Boundary), ids=lambda boundary: boundary.name)
@pytest.mark.parametrize("kind", list(EffectKind), ids=lambda kind: kind.name)
def test_driver_killed_around_an_effect_is_continued_to_the_same_bytes(
    killing: KillingDatabase, tmp_path: Path, undisturbed: dict[str, object], kind: EffectKind, boundary: Boundary
) -> None:
    lab = make_lab(tmp_path, killing)
    killing.arm(STEPS[kind], boundary)
    asyncio.run(settle_through_kills(lab))
    assert killing.n_kills == 1
    assert outcome(lab) == undisturbed
    assert_log_is_valid(lab)


def test_driver_killed_in_every_transition_before_its_commit_is_continued_to_the_same_bytes(
    killing: KillingDatabase, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    lab = make_lab(tmp_path, killing)
    killing.kill_each_transition_once()
    asyncio.run(settle_through_kills(lab))
    # AWAITING_SITES to COMPLETED: two rounds, opened, six phases each, folded, committed.
    assert killing.n_kills >= 2 * 9
    assert outcome(lab) == undisturbed
    assert_log_is_valid(lab)
