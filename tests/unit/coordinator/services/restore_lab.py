"""An engine lab inside a real installation, so that it can be backed up and restored under the sites' feet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from coordinator_engine_lab import COORDINATOR, RUN_ID, START, EngineLab, LabSite, RoundRef, initial_state
from sqlalchemy.orm import Session

from coordinator.ca.key_files import replace_file
from coordinator.db.migrate import migrate
from coordinator.db.models import AuditCheckpoint, Run
from coordinator.db.tx import Database
from coordinator.installation import Installation, open_installation
from coordinator.new_installation import Ports, install
from coordinator.services.accept_round import DeclineKind, decline_round
from coordinator.services.context import EngineContext
from coordinator.services.resources import origin_of
from coordinator.services.site_instructions import Instruction, TrainRound
from coordinator.services.wakeups import Wakeups
from coordinator.upkeep.backup import BackupMade, make_backup
from coordinator.upkeep.restore import Restored, RestoreOptions, restore_backup
from fl_protocol.ids import SiteId
from fl_protocol.pki.keys import pem_from_private_key
from fl_protocol.spec.round_spec import RoundManifest

PASSPHRASE = b"correct horse battery"


def quiet(line: str) -> None:
    """Nobody listens."""


class ProudSite(LabSite):
    """A site that, as the real one, starts from no state but its own, and says so."""

    async def follow(self, found: Instruction) -> None:
        if isinstance(found, TrainRound):
            named = RoundManifest.decode(found.manifest.body)
            if named.public_state_sha256 != self.state.digest():
                await decline_round(
                    self.lab.ctx,
                    site_id=self.site_id,
                    round=found.round,
                    kind=DeclineKind.REFUSED,
                    reason="public-state-mismatch",
                )
                return
        await super().follow(found)


def lab_in_installation(folder: Path, *names: str, rounds: int = 2) -> tuple[EngineLab, Installation]:
    """A lab whose database, blobs and signing key are those of an installation."""
    clock_free = _Fixed()
    install(folder, consortium="Lab", ports=Ports(rest=0, gateway=0, enrolment=0), clock=clock_free)
    key = pem_from_private_key(COORDINATOR._private_key)
    replace_file(folder / "keys" / "signing.key.pem", key, mode=0o600)
    installation = open_installation(folder / "coordinator.yaml")
    database = installation.open_database()
    migrate(database.engine)

    def forget(session: Session) -> None:
        for row in session.query(AuditCheckpoint):
            session.delete(row)

    # The first checkpoint is signed by the key that was replaced.
    database.run_tx("forget", forget)
    database.dispose()
    lab = EngineLab(folder, names or ("a-site", "b-site", "c-site"), rounds=rounds)
    origin = origin_of(installation.load_keys().authority.root_sha256)
    lab.ctx = dataclasses.replace(lab.ctx, origin=origin)
    layout = lab.ctx.blobs.put_bytes(b"the layout, as bytes").sha256

    def name_layout(session: Session) -> None:
        run = session.get(Run, RUN_ID)
        assert run is not None
        run.layout_blob_sha256 = layout

    lab.db.run_tx("name-layout", name_layout)
    lab.driver = lab.new_driver()
    lab.sites = {SiteId(name): ProudSite(site_id=SiteId(name), lab=lab) for name in lab.names}
    return lab, installation


class _Fixed:
    def now(self) -> object:
        return START


def back_up(lab: EngineLab, installation: Installation, path: Path) -> BackupMade:
    """A backup while the lab goes on."""
    return make_backup(installation, path, clock=lab.clock, passphrase=PASSPHRASE, report=quiet)


def restore_under(
    lab: EngineLab, path: Path, folder: Path, *, options: RestoreOptions | None = None
) -> tuple[Restored, Installation]:
    """The coordinator is lost; the sites go on with the one that is restored."""
    options = options or RestoreOptions(passphrase=PASSPHRASE)
    made = restore_backup(path, folder, clock=lab.clock, options=options, report=quiet)
    lab.db.dispose()
    installation = open_installation(folder / "coordinator.yaml")
    lab.db = installation.open_database()
    lab.ctx = EngineContext(
        db=lab.db,
        blobs=installation.open_blobs(),
        clock=lab.clock,
        signer=COORDINATOR,
        wakeups=Wakeups(),
        origin=lab.ctx.origin,
        n_threads=2,
    )
    lab.driver = lab.new_driver()
    return made, installation


def rows_of(database: Database) -> Callable[[str], list[tuple[object, ...]]]:
    """All rows of a table by its name, for comparison."""
    from coordinator.db.models import Base

    def rows(name: str) -> list[tuple[object, ...]]:
        table = Base.metadata.tables[name]
        order = list(table.primary_key.columns)
        return database.read(
            "rows", lambda session: [tuple(row) for row in session.execute(table.select().order_by(*order))]
        )

    return rows


__all__ = ["PASSPHRASE", "ProudSite", "RoundRef", "back_up", "initial_state", "lab_in_installation", "restore_under"]
