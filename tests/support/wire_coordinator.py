"""A coordinator that is spoken to in the exact bytes of its protos, without a network: for recorded conversations.

Everything behind the bytes is real: stubs' serializers, servicers, services, driver, database, blobs, authority. Keys
follow from seeds and the clock is set, so that the same requests get the same answers.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message
from sqlalchemy import select

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.ca.authority import CertificateAuthority
from coordinator.db.models import Certificate
from coordinator.db.tx import Database
from coordinator.driver.round_driver import RoundDriver
from coordinator.gateway import admission
from coordinator.gateway.chunk_codec import request_decoder, response_encoder
from coordinator.gateway.enrolment_servicer import EnrolmentServicer
from coordinator.gateway.round_servicer import RoundServicer
from coordinator.gateway.run_servicer import RunServicer
from coordinator.gateway.status import refused_call_from_error
from coordinator.services.context import EngineContext
from coordinator.services.identify_site import identify_site
from coordinator.services.resources import Addresses, Resources
from coordinator.services.wakeups import Wakeups
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId, SiteId
from fl_protocol.pki.tls import certificate_from_pem
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.v1 import enrolment_pb2_grpc, round_pb2_grpc, run_pb2_grpc

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seeded_key(seed: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key that follows from a seed. Safety: for tests only."""
    number = int.from_bytes(hashlib.sha512(seed.encode()).digest(), "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())


class SetClock:
    """A clock that is set."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: messages, as bytes; and how the call ended, where it was refused."""

    responses: tuple[bytes, ...]
    status: str = "OK"
    refusal: bytes = b""


class _Handlers:
    """Takes what the generated code registers, as a gRPC server would."""

    def __init__(self) -> None:
        self.by_path: dict[str, grpc.RpcMethodHandler[Message, Message]] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """The old way of registration; the same methods come by the new one."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Message, Message]]
    ) -> None:
        self.by_path.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


@dataclass(slots=True, kw_only=True)
class WireCoordinator:
    """One coordinator over a folder with ``coordinator.db`` and ``blobs``."""

    folder: Path
    root_pem: bytes
    clock: SetClock = field(default_factory=SetClock)
    db: Database = field(init=False)
    engine: EngineContext = field(init=False)
    resources: Resources = field(init=False)
    driver: RoundDriver = field(init=False)
    handlers: _Handlers = field(init=False, default_factory=_Handlers)
    released: list[RunId] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.db = Database.from_path(self.folder / "coordinator.db")
        blobs = FilesystemBlobStore(self.folder / "blobs")
        self.engine = EngineContext(
            db=self.db,
            blobs=blobs,
            clock=self.clock,
            signer=seeded_signer("coordinator"),
            wakeups=Wakeups(),
            origin="wardround://coordinator/recorded",
            n_threads=1,
        )
        self.resources = Resources(
            db=self.db,
            blobs=blobs,
            authority=CertificateAuthority(certificate=certificate_from_pem(self.root_pem), key=seeded_key("root")),
            enrolment_certificate_pem=self.root_pem,
            signer=seeded_signer("coordinator"),
            release_signer=seeded_signer("release"),
            clock=self.clock,
            addresses=Addresses(gateway="gateway.example:8444", enrolment="gateway.example:8445"),
            code_lifetime_s=86400.0,
            max_blob_bytes=1 << 20,
        )
        self.driver = RoundDriver(self.engine, create_release=self._release, holder="driver-recorded")
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(EnrolmentServicer(self.resources), self.handlers)
        round_pb2_grpc.add_RoundServiceServicer_to_server(RoundServicer(self.engine), self.handlers)
        run_pb2_grpc.add_RunServiceServicer_to_server(RunServicer(self.resources), self.handlers)

    async def _release(self, run_id: RunId) -> None:
        self.released.append(run_id)

    async def drive(self, run_id: RunId) -> None:
        """Let the driver go as far as it can."""
        for _ in range(200):
            if not await self.driver.step(run_id):
                return
        raise AssertionError("the driver does not come to rest")

    async def call(self, site_id: SiteId | None, path: str, requests: Sequence[bytes]) -> Answer:
        """One call, in bytes, of a site with the certificate that it was given last."""
        handler = self.handlers.by_path[path]
        method = path.rpartition("/")[2]
        read = request_decoder(method, handler.request_deserializer)
        write = response_encoder(method, handler.response_serializer)
        assert read is not None
        assert write is not None
        token = None if site_id is None else admission._site.set(self._identified(site_id))
        said: list[bytes] = []
        try:
            if handler.unary_unary is not None:
                said.append(write(await handler.unary_unary(read(requests[0]), None)))
            elif handler.stream_unary is not None:
                stream = _each([read(request) for request in requests])
                said.append(write(await handler.stream_unary(stream, None)))
            else:
                # One by one: what came before a refusal was said.
                async for response in handler.unary_stream(read(requests[0]), None):
                    said.append(write(response))  # noqa: PERF401
        except WardroundError as error:
            refused = refused_call_from_error(error)
            if refused is None:
                raise
            return Answer(responses=tuple(said), status=refused.code.name, refusal=refused.refusal)
        finally:
            if token is not None:
                admission._site.reset(token)
        return Answer(responses=tuple(said))

    def _identified(self, site_id: SiteId) -> SiteId:
        """What the gateway does at the head of every call: which certificate, may it act, it was seen."""
        newest = select(Certificate).where(Certificate.site_id == site_id).order_by(Certificate.not_before.desc())
        held = self.db.read("certificate", lambda session: session.scalars(newest.limit(1)).one())
        found = identify_site(self.resources, site_id=site_id, certificate_sha256=held.fingerprint_sha256)
        return found.site_id

    def close(self) -> None:
        self.db.dispose()


async def _each(messages: Sequence[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


def save_snapshot(folder: Path) -> dict[str, object]:
    """The database as SQL text and every file of the blob store, to be kept as data."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        sql = "\n".join(connection.iterdump())
    connection.close()
    blobs = {
        str(path.relative_to(folder)): base64.b64encode(path.read_bytes()).decode()
        for path in sorted((folder / "blobs").rglob("*"))
        if path.is_file()
    }
    return {"sql": sql, "files": blobs}


def load_snapshot(folder: Path, *, sql: str, files: dict[str, str]) -> None:
    """Make a folder what it was."""
    with sqlite3.connect(folder / "coordinator.db") as connection:
        connection.executescript(sql)
    connection.close()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
