"""What the driver and the janitor tell those who run it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.db.migrate import migrate
from coordinator.db.models import Lease
from coordinator.db.tx import Database
from coordinator.driver.effects_performer import DueEffect, EffectsPerformer, RetryRules
from coordinator.driver.janitor import Janitor
from coordinator.driver.round_driver import RoundDriver
from coordinator.services.context import EngineContext
from coordinator.services.effect_kinds import EffectKind
from coordinator.services.wakeups import Wakeups
from fl_protocol.ids import RunId
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.keys import EcdsaSigner

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
RUN = RunId("run-" + "a" * 26)


@dataclass(frozen=True, slots=True)
class Still:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineContext]:
    database = Database.from_path(tmp_path / "coordinator.db")
    migrate(database.engine)
    yield EngineContext(
        db=database,
        blobs=FilesystemBlobStore(tmp_path / "blobs"),
        clock=Still(),
        signer=EcdsaSigner(generate_private_key()),
        wakeups=Wakeups(),
        origin="coordinator:test",
    )
    database.dispose()


async def never(run_id: RunId) -> None:
    raise RuntimeError(f"the release of {run_id} cannot be made")


def told(engine: EngineContext) -> dict[str, float]:
    return {
        "/".join([sample.name.removeprefix("wardround_coordinator_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(engine.meter.exposition().decode())
        for sample in family.samples
        if sample.value
    }


async def test_lease_that_another_took_is_counted_once(engine: EngineContext) -> None:
    driver = RoundDriver(engine, create_release=never, holder="me")
    driver._held.add(RUN)
    taken = {"name": f"run:{RUN}", "holder": "another", "expires_at": NOW + timedelta(seconds=10)}
    engine.db.run_tx("take", lambda session: session.add(Lease(**taken)))
    for _ in range(3):
        await driver._advance(RUN)
    assert told(engine) == {"lease_losses_total": 1.0}


async def test_effect_that_failed_is_counted_by_its_kind(engine: EngineContext) -> None:
    performer = EffectsPerformer(engine, create_release=never, rules=RetryRules(), may_count=lambda *_: False)
    effect = DueEffect(effect_id=1, run_id=RUN, kind=EffectKind.CREATE_RELEASE, payload={}, attempts=0)
    assert not await performer.perform(effect)
    assert told(engine) == {"effect_failures_total/create-release": 1.0}


async def test_pass_of_the_janitor_is_counted_where_it_holds_the_lease(engine: EngineContext) -> None:
    assert await Janitor(engine, holder="first").sweep()
    assert not await Janitor(engine, holder="second").sweep()
    assert told(engine) == {"scrub_passes_total": 1.0}
