"""Records a run of version 0.1.0's sites with that version's coordinator: every request and answer, byte for byte.

    python tests/vectors/wire/0.1.0/record.py FOLDER

It was run once, with the code of 0.1.0, and is kept to say how the files beside it came about: on a later version it
would record that version. Keys and entropy are seeded and the clock is set. The story:

- six sites enrol; all list the run, read it and its roster, and approve it;
- round 0 trains. `f-site` declines it; `e-site` stays away until the deadline; `d-site` deals its shares and is not
  heard of again; `b-site`'s upload breaks in the middle and is resumed; `a-site` repeats messages; the sum is that of
  `a-site`, `b-site` and `c-site`;
- round 1 evaluates. `d-site`, `e-site` and `f-site` fetch what they missed by GetResult; all six take part.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from sqlalchemy import delete
from sqlalchemy.orm import Session

from coordinator.ca.enrolment import possession_message
from coordinator.db.migrate import migrate
from coordinator.db.models import Approval, EnrolmentCode, Site
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u32
from fl_protocol.pki.certificates import Validity, make_ca_certificate
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.tls import pem_from_certificate
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.convert import exchange_from_proto, proto_from_exchange, proto_from_signed
from fl_protocol.wire.v1 import (
    enrolment_pb2,
    errors_pb2,
    round_pb2,
    run_pb2,
    secagg_pb2,
    signed_pb2,
)
from tests.support.wire_coordinator import START, Answer, SetClock, WireCoordinator, save_snapshot, seeded_key

M = TypeVar("M", bound=Message)
_ROOT = Path(__file__).parents[4]
NAMES = ("a-site", "b-site", "c-site", "d-site", "e-site", "f-site")
ROUND = "/fl_protocol.wire.v1.RoundService/"
RUN = "/fl_protocol.wire.v1.RunService/"
ENROL = "/fl_protocol.wire.v1.EnrolmentService/Enrol"
_PROTOS = (enrolment_pb2, errors_pb2, round_pb2, run_pb2, secagg_pb2, signed_pb2)


def _load_lab() -> ModuleType:
    path = _ROOT / "tests/unit/coordinator/services/engine_lab.py"
    spec = importlib.util.spec_from_file_location("coordinator_engine_lab", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coordinator_engine_lab"] = module
    spec.loader.exec_module(module)
    return module


lab_module = _load_lab()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Calls the coordinator and writes down what was said."""

    coordinator: WireCoordinator
    records: list[dict[str, object]] = field(default_factory=list)
    snapshots: dict[str, object] = field(default_factory=dict)
    is_driving: bool = True

    async def send(self, site: str | None, path: str, *requests: Message) -> Answer:
        """One call; the driver then goes as far as it can."""
        encoded = [request.SerializeToString(deterministic=True) for request in requests]
        at = self.coordinator.clock.at
        answer = await self.coordinator.call(None if site is None else SiteId(site), path, encoded)
        self.records.append(
            {
                "at": at.isoformat(),
                "site": site,
                "path": path,
                "requests": [_text(data) for data in encoded],
                "responses": [_text(data) for data in answer.responses],
                "status": answer.status,
                "refusal": _text(answer.refusal),
                "driver": self.is_driving,
            }
        )
        if self.is_driving:
            await self.coordinator.drive(lab_module.RUN_ID)
        return answer

    async def advance(self, seconds: float) -> None:
        """Time passes, and the driver sees it."""
        self.coordinator.clock.advance(seconds)
        self.records.append({"at": self.coordinator.clock.at.isoformat(), "passes": seconds, "driver": True})
        await self.coordinator.drive(lab_module.RUN_ID)

    def snapshot(self, name: str) -> None:
        """Keep database and blobs as they are now."""
        self.snapshots[name] = {"before_record": len(self.records), **save_snapshot(self.coordinator.folder)}


class WireSite(lab_module.LabSite):
    """An honest site that speaks protobuf."""

    async def ask(self, method: str, request: Message, kind: type[M]) -> M:
        answer = await self.recorder.send(self.site_id, ROUND + method, request)
        assert answer.status == "OK", (method, answer)
        return kind.FromString(answer.responses[0])

    async def poll(self) -> round_pb2.PollAssignmentResponse:
        holding = [
            round_pb2.RoundRef(run_id=ref.run_id, round_index=ref.round_index, round_attempt=ref.round_attempt)
            for ref in sorted(self.holding)
        ]
        request = round_pb2.PollAssignmentRequest(holding=holding, wait_s=0.0, agent_version="0.1.0")
        return await self.ask("PollAssignment", request, round_pb2.PollAssignmentResponse)

    async def train(self, answer: round_pb2.PollAssignmentResponse, *, is_repeating: bool = False) -> None:
        ref = answer.train.round
        held = lab_module.RoundRef(
            run_id=RunId(ref.run_id), round_index=ref.round_index, round_attempt=ref.round_attempt
        )
        self.manifests[held] = SignedBody(body=answer.train.manifest.body, signature=answer.train.manifest.signature)
        self.holding.add(held)
        await self.ask("AcceptRound", round_pb2.AcceptRoundRequest(round=ref), round_pb2.AcceptRoundResponse)
        for activity, step in ((round_pb2.SITE_ACTIVITY_EVALUATING, 0), (round_pb2.SITE_ACTIVITY_TRAINING, 1)):
            progress = round_pb2.ReportProgressRequest(round=ref, activity=activity, step=step, steps=2)
            await self.ask("ReportProgress", progress, round_pb2.ReportProgressResponse)
        for _ in range(2 if is_repeating else 1):
            await self.ask("ReportReady", round_pb2.ReportReadyRequest(round=ref), round_pb2.ReportReadyResponse)

    async def step(self, *, is_breaking: bool = False, is_repeating: bool = False) -> str:
        """Ask once and answer once; what was asked."""
        answer = await self.poll()
        asked = answer.WhichOneof("instruction")
        times = 2 if is_repeating else 1
        match asked:
            case "train":
                await self.train(answer, is_repeating=is_repeating)
            case "open_exchange":
                context = exchange_from_proto(answer.open_exchange.exchange)
                m1 = round_pb2.AdvertiseKeysRequest(
                    exchange=proto_from_exchange(context), advertisement=self.role(context).advertise()
                )
                for _ in range(times):
                    await self.ask("AdvertiseKeys", m1, round_pb2.AdvertiseKeysResponse)
            case "keys":
                context = exchange_from_proto(answer.keys.exchange)
                m3 = round_pb2.ShareKeysRequest(
                    exchange=proto_from_exchange(context), deal=self.role(context).share(answer.keys.keys)
                )
                for _ in range(times):
                    await self.ask("ShareKeys", m3, round_pb2.ShareKeysResponse)
            case "shares":
                context = exchange_from_proto(answer.shares.exchange)
                self.role(context).accept_shares(answer.shares.shares)
                values, layout = self.payload(self.ref(context))
                self.uploads[context] = self.role(context).mask(encode_payload(values, layout)).vector.to_bytes()
                await self.upload_parts(context, is_breaking=is_breaking)
            case "survivors":
                context = exchange_from_proto(answer.survivors.exchange)
                m7 = round_pb2.ConfirmSurvivorsRequest(
                    exchange=proto_from_exchange(context),
                    confirmation=self.role(context).confirm(answer.survivors.survivors),
                )
                for _ in range(times):
                    await self.ask("ConfirmSurvivors", m7, round_pb2.ConfirmSurvivorsResponse)
            case "confirmations":
                context = exchange_from_proto(answer.confirmations.exchange)
                m9 = round_pb2.RevealSharesRequest(
                    exchange=proto_from_exchange(context),
                    reveal=self.role(context).reveal(answer.confirmations.confirmations),
                )
                for _ in range(times):
                    await self.ask("RevealShares", m9, round_pb2.RevealSharesResponse)
            case "result":
                await self.take(answer.result, times=times)
            case "abandon":
                ref = answer.abandon.round
                self.holding.discard(
                    lab_module.RoundRef(
                        run_id=RunId(ref.run_id), round_index=ref.round_index, round_attempt=ref.round_attempt
                    )
                )
        return asked or ""

    async def upload_parts(self, context: ExchangeContext, *, is_breaking: bool) -> None:
        data = self.uploads[context]
        m5 = self.role(context).last_message
        assert m5 is not None
        if is_breaking:
            answer = await self.send_parts(context, m5=m5, data=data[: len(data) // 2], offset=0)
            assert answer.status != "OK"
            self.recorder.snapshot("upload-half-way")
        query = round_pb2.QueryUploadRequest(exchange=proto_from_exchange(context))
        held = (await self.ask("QueryUpload", query, round_pb2.QueryUploadResponse)).received_bytes
        answer = await self.send_parts(context, m5=m5, data=data, offset=held)
        assert answer.status == "OK"
        await self.ask("QueryUpload", query, round_pb2.QueryUploadResponse)

    async def send_parts(self, context: ExchangeContext, *, m5: bytes, data: bytes, offset: int) -> Answer:
        header = round_pb2.UploadHeader(exchange=proto_from_exchange(context), masked_input=m5, offset=offset)
        parts: list[Message] = [round_pb2.UploadBlobRequest(header=header)]
        for start in range(offset, len(data), 64):
            chunk = round_pb2.BlobChunk(offset=start, data=data[start : start + 64])
            parts.append(round_pb2.UploadBlobRequest(chunk=chunk))
        return await self.recorder.send(self.site_id, ROUND + "UploadBlob", *parts)

    async def download(self, sha256: str, *, offset: int = 0) -> bytes:
        request = round_pb2.DownloadBlobRequest(run_id=lab_module.RUN_ID, sha256=sha256, offset=offset)
        answer = await self.recorder.send(self.site_id, ROUND + "DownloadBlob", request)
        assert answer.status == "OK"
        return b"".join(round_pb2.DownloadBlobResponse.FromString(one).chunk.data for one in answer.responses)

    async def take(self, result: round_pb2.PublishedResult, *, times: int) -> None:
        context = exchange_from_proto(result.exchange)
        said = self.role(context).finish(result.result)
        data = await self.download(result.sum_blob_sha256)
        assert hashlib.sha256(data).digest() == said.result_sha256
        self.fold(data, context, n_sites=len(self.role(context).survivors))
        body = pack(
            context.run_id.encode(),
            u32(context.round_index),
            hashlib.sha256(result.result).digest(),
            bytes.fromhex(self.state.digest()),
        )
        signed = sign_body(seeded_signer(self.site_id), lab_module.ACKNOWLEDGEMENT_KIND, body)
        request = round_pb2.AcknowledgeResultRequest(
            exchange=proto_from_exchange(context), acknowledgement=proto_from_signed(signed)
        )
        for _ in range(times):
            await self.ask("AcknowledgeResult", request, round_pb2.AcknowledgeResultResponse)
        self.holding.discard(self.ref(context))

    async def catch_up(self, round_index: int, *, n_sites: int) -> None:
        """What a site that was absent does: the missed result, and the fold."""
        request = round_pb2.GetResultRequest(run_id=lab_module.RUN_ID, round_index=round_index)
        found = await self.ask("GetResult", request, round_pb2.GetResultResponse)
        context = exchange_from_proto(found.result.exchange)
        self.manifests[self.ref(context)] = SignedBody(body=found.manifest.body, signature=found.manifest.signature)
        half = await self.download(found.result.sum_blob_sha256, offset=found.result.sum_bytes // 2)
        data = await self.download(found.result.sum_blob_sha256)
        assert data.endswith(half)
        self.fold(data, context, n_sites=n_sites)


def enrolment_request(name: str) -> enrolment_pb2.EnrolRequest:
    """What a site sends with its one-time secret."""
    secret = hashlib.sha256(f"code/{name}".encode()).digest()[:20]
    csr = make_csr(seeded_key(f"tls/{name}"))
    signer = seeded_signer(name)
    return enrolment_pb2.EnrolRequest(
        code_secret=secret,
        tls_csr_der=csr,
        signing_spki_der=signer.spki_der,
        possession_signature=signer.sign(possession_message(secret, csr)),
        agent_version="0.1.0",
    )


async def approve(recorder: Recorder, name: str) -> None:
    """List, read, approve."""
    summary = await recorder.send(name, RUN + "ListPending", run_pb2.ListPendingRequest())
    assert run_pb2.ListPendingResponse.FromString(summary.responses[0]).runs
    run_id = lab_module.RUN_ID
    detail = await recorder.send(name, RUN + "GetRun", run_pb2.GetRunRequest(run_id=run_id))
    run = run_pb2.GetRunResponse.FromString(detail.responses[0])
    initial = round_pb2.DownloadBlobRequest(run_id=run_id, sha256=run.initial_state_blob_sha256)
    await recorder.send(name, ROUND + "DownloadBlob", initial)
    statement = {
        "at": recorder.coordinator.clock.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "dataset": "medical-qa",
        "decision": "approved",
        "local_user": "steward",
        "purpose": "Answer patient questions about rare diseases",
        "run_id": run_id,
        "run_spec_sha256": run.run.run_spec_sha256,
    }
    body = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signed = proto_from_signed(sign_body(seeded_signer(name), "WR/sig/approval", body))
    submitted = await recorder.send(
        name, RUN + "SubmitApproval", run_pb2.SubmitApprovalRequest(statement=signed, run_id=run_id)
    )
    assert submitted.status == "OK", submitted
    await recorder.send(name, RUN + "GetRoster", run_pb2.GetRosterRequest(run_id=run_id))


def set_up(folder: Path) -> WireCoordinator:
    """A database made by the migrations, a run that waits for approvals, six invited sites with open codes."""
    certificate = make_ca_certificate(
        seeded_key("root"),
        common_name="Recorded consortium",
        validity=Validity(not_before=START.replace(year=2026), not_after=START.replace(year=2036)),
        serial=1,
    )
    coordinator = WireCoordinator(folder=folder, root_pem=pem_from_certificate(certificate), clock=SetClock())
    migrate(coordinator.db.engine)
    lab = object.__new__(lab_module.EngineLab)
    lab.names, lab.spec = NAMES, lab_module.run_spec(NAMES, quorum=3, rounds=1)
    blob = coordinator.engine.blobs.put_bytes(lab_module.initial_state().to_bytes())

    def fill(session: Session) -> None:
        lab._fill(session, blob.sha256)
        session.flush()
        session.execute(delete(Approval))
        for name in NAMES:
            site = session.get(Site, name)
            assert site is not None
            site.state, site.signing_spki, site.signing_key_sha256, site.enrolled_at = "INVITED", None, None, None
            secret = bytes(enrolment_request(name).code_secret)
            session.add(
                EnrolmentCode(
                    code_sha256=hashlib.sha256(secret).hexdigest(),
                    site_id=name,
                    created_at=START,
                    created_by="user:admin",
                    expires_at=START.replace(day=8),
                    used_at=None,
                    used_by_key_sha256=None,
                )
            )

    coordinator.db.run_tx("set-up", fill)
    return coordinator


async def record(folder: Path) -> Recorder:
    coordinator = set_up(folder)
    recorder = Recorder(coordinator=coordinator)
    recorder.snapshot("set-up")
    lab = object.__new__(lab_module.EngineLab)
    lab.names, lab.spec = NAMES, lab_module.run_spec(NAMES, quorum=3, rounds=1)
    sites = {}
    for name in NAMES:
        sites[name] = WireSite(site_id=SiteId(name), lab=lab)
        sites[name].recorder = recorder
    for name in NAMES:
        answer = await recorder.send(None, ENROL, enrolment_request(name))
        assert answer.status == "OK", answer
    recorder.snapshot("enrolled")
    assert await sites["a-site"].step() == "idle"
    # A quorum of approvals opens the first round: the driver is away until everybody has said yes.
    recorder.is_driving = False
    for name in NAMES:
        coordinator.clock.advance(1)
        await approve(recorder, name)
    recorder.is_driving = True
    await _rounds(recorder, sites)
    return recorder


async def _rounds(recorder: Recorder, sites: dict[str, WireSite]) -> None:
    run = recorder.coordinator
    await recorder.advance(1)
    recorder.snapshot("round-0-opened")
    for name in NAMES[:4]:
        assert await sites[name].step(is_repeating=name == "a-site") == "train"
    answer = await sites["f-site"].poll()
    declined = round_pb2.DeclineRoundRequest(
        round=answer.train.round, kind=round_pb2.DECLINE_KIND_FAILED, reason="trainer-failed"
    )
    await sites["f-site"].ask("DeclineRound", declined, round_pb2.DeclineRoundResponse)
    assert await sites["a-site"].step() == "idle"
    await recorder.advance(3601)
    for asked in ("open_exchange", "keys"):
        for name in NAMES[:4]:
            assert await sites[name].step(is_repeating=name == "a-site") == asked
    for name in NAMES[:3]:
        assert await sites[name].step(is_breaking=name == "b-site") == "shares"
    await recorder.advance(121)
    assert await sites["d-site"].step() == "abandon"
    for asked in ("survivors", "confirmations"):
        for name in NAMES[:3]:
            assert await sites[name].step(is_repeating=name == "a-site") == asked
    recorder.snapshot("round-1-opened")
    for name in NAMES[:3]:
        assert await sites[name].step(is_repeating=name == "a-site") == "result"
    for name in NAMES[3:]:
        await sites[name].catch_up(0, n_sites=3)
        assert sites[name].state.digest() == sites["a-site"].state.digest()
    # A round that does not exist is abandoned.
    foreign = round_pb2.RoundRef(run_id=lab_module.RUN_ID, round_index=9, round_attempt=0)
    request = round_pb2.PollAssignmentRequest(holding=[foreign], agent_version="0.1.0")
    unknown = await sites["c-site"].ask("PollAssignment", request, round_pb2.PollAssignmentResponse)
    assert unknown.WhichOneof("instruction") == "abandon"
    for asked in ("train", "open_exchange", "keys", "shares", "survivors", "confirmations", "result"):
        for name in NAMES:
            assert await sites[name].step() == asked, (name, asked)
    for name in NAMES:
        assert await sites[name].step() == "idle"
    late = round_pb2.QueryUploadRequest(exchange=proto_from_exchange(min(sites["b-site"].uploads, key=str)))
    await sites["b-site"].ask("QueryUpload", late, round_pb2.QueryUploadResponse)
    assert run.released == [lab_module.RUN_ID]


def descriptor_set() -> bytes:
    """The protos of this version with what they import, as one set."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = file

    for module in _PROTOS:
        add(module.DESCRIPTOR)
    found = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString(deterministic=True)


def main(arguments: Sequence[str]) -> None:
    out = Path(arguments[0])
    with tempfile.TemporaryDirectory() as folder:
        recorder = asyncio.run(record(Path(folder)))
        root_pem = recorder.coordinator.root_pem.decode()
        recorder.coordinator.close()
    for name, snapshot in recorder.snapshots.items():
        assert isinstance(snapshot, dict)
        (out / f"{name}.sql").write_text(str(snapshot.pop("sql")) + "\n")
    document = {
        "version": "0.1.0",
        "run_id": lab_module.RUN_ID,
        "root_pem": root_pem,
        "snapshots": recorder.snapshots,
        "records": recorder.records,
    }
    (out / "transcript.json").write_text(json.dumps(document, indent=0, sort_keys=True) + "\n")
    (out / "protos.binpb").write_bytes(descriptor_set())


if __name__ == "__main__":
    main(sys.argv[1:])
