"""The coordinator of a simulation: its real database, blobs, services, gateway, driver and janitor, over one folder.

A process is thrown away whole when it dies; another one opens the same folder. A second driver is a process of its own
that shares the database and the blobs, and nothing else.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.blobs.store import Chunk, PartialWriter, StoredBlob
from coordinator.ca.authority import CertificateAuthority
from coordinator.db.engines import engine_from_url
from coordinator.db.models import Base
from coordinator.db.tx import Database
from coordinator.driver.janitor import Janitor, JanitorSettings
from coordinator.driver.round_driver import DriverSettings, RoundDriver
from coordinator.errors import BlobStoreFullError
from coordinator.gateway.interceptors import GatewayInterceptor
from coordinator.gateway.round_servicer import RoundServicer
from coordinator.gateway.run_servicer import RunServicer
from coordinator.services.context import EngineContext
from coordinator.services.identify_site import CallingSite, identify_site
from coordinator.services.release_adapter import create_release
from coordinator.services.resources import Addresses, Resources
from coordinator.services.wakeups import Wakeups
from fl_protocol.ids import RunId, SiteId
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.v1 import round_pb2_grpc, run_pb2_grpc
from tests.simulation.clockwork import ClockworkLoop, ManualClock
from tests.simulation.processes import Process, boundary, is_disk_full
from tests.simulation.wire import Gateway

T = TypeVar("T")
SIGNER = seeded_signer("coordinator")
RELEASE_SIGNER = seeded_signer("release")
LEASE_S = 5.0

_engines: dict[Path, Engine] = {}


def engine_at(path: Path) -> Engine:
    """The engine of a file; the same one for every life of a coordinator, since its statements are compiled once."""
    if path not in _engines:
        engine = engine_from_url(f"sqlite:///{path}")
        # No power is cut here, and a process that dies loses nothing that it wrote.
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        _engines[path] = engine
    return _engines[path]


def create_tables(path: Path) -> None:
    Base.metadata.create_all(engine_at(path))


class WatchedDatabase(Database):
    """The real one, with a boundary on either side of each commit."""

    def run_tx(self, name: str, fn: Callable[[Session], T]) -> T:
        def watched(session: Session) -> T:
            before = _n_changes(session)
            outcome = fn(session)
            session.flush()
            if is_disk_full() and _n_changes(session) != before:
                raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
            boundary(f"tx {name}: before its commit")
            return outcome

        outcome = super().run_tx(name, watched)
        boundary(f"tx {name}: after its commit")
        return outcome


def _n_changes(session: Session) -> int:
    connection = session.connection().connection.dbapi_connection
    assert isinstance(connection, sqlite3.Connection)
    return connection.total_changes


class WatchedBlobs(FilesystemBlobStore):
    """The real one, with a boundary on either side of each blob, and a disk that may be full."""

    def put(self, chunks: Any, *, expected_sha256: str | None = None) -> StoredBlob:
        boundary("blob put: before")
        stored = super().put(chunks, expected_sha256=expected_sha256)
        boundary("blob put: after")
        return stored

    def open_partial(self, name: str) -> Any:
        boundary("blob partial opened: before")
        return _WatchedPartial(super().open_partial(name))


class _WatchedPartial:
    """A writer of a partial, likewise."""

    def __init__(self, real: PartialWriter) -> None:
        self._real = real

    @property
    def held(self) -> int:
        return self._real.held

    @property
    def lineage(self) -> str:
        return self._real.lineage

    def append(self, data: Chunk) -> int:
        boundary("blob append: before")
        if is_disk_full():
            raise BlobStoreFullError("the blob store is full; the upload may be resumed later")
        held = self._real.append(data)
        boundary("blob append: after")
        return held

    def finish(self, *, sha256: str) -> StoredBlob:
        boundary("blob finish: before")
        if is_disk_full():
            raise BlobStoreFullError("the blob store is full; the upload may be resumed later")
        stored = self._real.finish(sha256=sha256)
        boundary("blob finish: after")
        return stored

    def close(self) -> None:
        self._real.close()


class CoordinatorProcess:
    """One life of the coordinator, with or without its gateway."""

    def __init__(
        self,
        folder: Path,
        process: Process,
        *,
        clock: ManualClock,
        loop: ClockworkLoop,
        authority: CertificateAuthority,
        holder: str,
    ) -> None:
        self.process = process
        self.calls: set[asyncio.Task[Any]] = set()
        db = WatchedDatabase(engine_at(folder / "coordinator.db"))
        blobs = WatchedBlobs(folder / "blobs")
        wakeups = Wakeups()
        self.resources = Resources(
            db=db,
            blobs=blobs,
            authority=authority,
            enrolment_certificate_pem=b"",
            signer=SIGNER,
            release_signer=RELEASE_SIGNER,
            clock=clock,
            addresses=Addresses(gateway="sim:1", enrolment="sim:2"),
            code_lifetime_s=3600.0,
            max_blob_bytes=1 << 20,
            wake_driver=wakeups.wake_driver,
            wake_sites=wakeups.wake_sites,
        )
        self.engine = EngineContext(
            db=db,
            blobs=blobs,
            clock=clock,
            signer=SIGNER,
            wakeups=wakeups,
            origin=self.resources.origin,
            n_threads=1,
        )
        self.driver = RoundDriver(
            self.engine,
            create_release=self._create_release,
            holder=holder,
            settings=DriverSettings(lease=timedelta(seconds=LEASE_S)),
        )
        self.janitor = Janitor(self.engine, settings=JanitorSettings(), holder=f"janitor-{holder}")
        self.gateway = Gateway(GatewayInterceptor(identify=self._identify), loop)
        round_pb2_grpc.add_RoundServiceServicer_to_server(RoundServicer(self.engine), self.gateway)  # type: ignore[arg-type]
        run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(self.resources), self.gateway)  # type: ignore[arg-type]

    async def _identify(self, site_id: SiteId, certificate_sha256: str) -> CallingSite:
        return await asyncio.to_thread(
            identify_site, self.resources, site_id=site_id, certificate_sha256=certificate_sha256
        )

    async def _create_release(self, run_id: RunId) -> None:
        boundary("effect create-release: before")
        await create_release(self.resources, run_id)
        boundary("effect create-release: after")
