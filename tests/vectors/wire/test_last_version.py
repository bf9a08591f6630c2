"""A coordinator of this version and sites of the last one, by the recorded conversation in ``0.1.0``.

What an old site would see is read with the protos of its own version (``protos.binpb``): a field that it knows has the
recorded content, a field that it does not know is skipped by it as by any protobuf reader, and an answer to a poll is
one of the instructions that it knows. Only what cannot be the same is compared by its meaning: the certificate that
enrolment issues has a random serial number, and M0 names the head of an audit log that may record more than it did.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from sqlalchemy.orm import Session

from coordinator.db.migrate import migrate
from coordinator.db.models import AuditCheckpoint, AuditRow, Round, Run
from fl_protocol.audit.chain import AuditRow as Leaf
from fl_protocol.audit.verify import AuditVerified, verify_log
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import u64_from_bytes, unpack
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.tls import certificate_from_pem
from fl_protocol.signing.signed import SignedBody, verify_body
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.convert import exchange_from_proto, signed_from_proto
from fl_protocol.wire.v1 import round_pb2, run_pb2
from site_agent.link.instructions import Idle, TrainRound, instruction_from_proto
from site_agent.link.receipts import verify_receipt
from tests.support.wire_coordinator import SetClock, WireCoordinator, load_snapshot

_DATA = Path(__file__).parent / "0.1.0"
_POLL = "PollAssignment"
# The parts of the conversation: each begins with the snapshot of that name. Within a part every answer is exact.
_PARTS = ("set-up", "enrolled", "round-0-opened", "upload-half-way", "round-1-opened")


@cache
def transcript() -> dict[str, Any]:
    return json.loads((_DATA / "transcript.json").read_bytes())


@cache
def old_protos() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((_DATA / "protos.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


def old_types(path: str) -> tuple[type[Message], type[Message]]:
    """The classes of a method's request and answer, as the old version defines them."""
    _, service, method = path.split("/")
    found = old_protos().FindServiceByName(service).FindMethodByName(method)
    return message_factory.GetMessageClass(found.input_type), message_factory.GetMessageClass(found.output_type)


def old_view(path: str, data: bytes) -> Message:
    """The answer as the old site sees it."""
    answer = old_types(path)[1].FromString(data)
    answer.DiscardUnknownFields()  # type: ignore[no-untyped-call]
    return answer


def instruction(record: dict[str, Any]) -> str | None:
    """What the recorded answer to a poll asks for."""
    return old_view(record["path"], decoded(record["responses"])[0]).WhichOneof("instruction")


def decoded(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


def begins_at(part: str) -> int:
    return int(transcript()["snapshots"][part]["before_record"])


def ends_at(part: str) -> int:
    following = _PARTS[_PARTS.index(part) + 1 :]
    return begins_at(following[0]) if following else len(transcript()["records"])


@pytest.fixture
def coordinator(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WireCoordinator]:
    """This version's coordinator on the last version's database, migrated; the fixture's parameter names a snapshot."""
    part: str = request.param
    load_snapshot(tmp_path, sql=(_DATA / f"{part}.sql").read_text(), files=transcript()["snapshots"][part]["files"])
    records = transcript()["records"]
    at = datetime.fromisoformat(records[max(0, begins_at(part) - 1)]["at"])
    made = WireCoordinator(folder=tmp_path, root_pem=transcript()["root_pem"].encode(), clock=SetClock(at))
    migrate(made.db.engine)
    yield made
    made.close()


async def replay(coordinator: WireCoordinator, first: int, last: int) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Say what was said; returns each record with the answers of this version, their endings compared already."""
    said = []
    for record in transcript()["records"][first:last]:
        coordinator.clock.at = datetime.fromisoformat(record["at"])
        if "passes" not in record:
            site = None if record["site"] is None else SiteId(record["site"])
            answer = await coordinator.call(site, record["path"], decoded(record["requests"]))
            recorded = old_protos().FindMessageTypeByName("fl_protocol.wire.v1.Refusal")
            refusal = message_factory.GetMessageClass(recorded)
            before, now = refusal.FromString(base64.b64decode(record["refusal"])), refusal.FromString(answer.refusal)
            assert answer.status == record["status"], (record["path"], now)
            assert now.code == before.code  # type: ignore[attr-defined]
            said.append((record, list(answer.responses)))
        if record["driver"]:
            await coordinator.drive(RunId(transcript()["run_id"]))
    return said


def _is_told_later(record: dict[str, Any]) -> bool:
    """Whether a site was told to abandon a round because it was silent; this version waits with that."""
    if not record["path"].endswith(_POLL):
        return False
    said = old_view(record["path"], decoded(record["responses"])[0])
    return bool(said.abandon.reason.startswith("silent-in-"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("coordinator", "part"), [(part, part) for part in _PARTS[1:]], indirect=["coordinator"], ids=_PARTS[1:]
)
async def test_old_sites_see_what_they_saw(coordinator: WireCoordinator, part: str) -> None:
    # Half-way through the upload everything goes on to the end of that round, from a database taken in the middle.
    said = await replay(coordinator, begins_at(part), ends_at(part))
    assert said
    for record, answers in said:
        path = record["path"]
        if _is_told_later(record):
            assert old_view(path, answers[0]).WhichOneof("instruction") == "idle"
            # Its payload may be asked for again while the round lasts; once it is over, the site hears what it heard.
            again = await coordinator.call(SiteId(record["site"]), path, decoded(record["requests"]))
            answers[:] = again.responses
        assert [old_view(path, one) for one in answers] == [old_view(path, one) for one in decoded(record["responses"])]
        if path.endswith(_POLL):
            assert old_view(path, answers[0]).WhichOneof("instruction") is not None


@pytest.mark.parametrize("coordinator", ["round-1-opened"], indirect=True)
async def test_run_of_the_last_version_is_finished_by_this_one(coordinator: WireCoordinator) -> None:
    await replay(coordinator, begins_at("round-1-opened"), len(transcript()["records"]))
    run_id = transcript()["run_id"]
    run, rounds = coordinator.db.read(
        "run",
        lambda session: (session.get(Run, run_id), [session.get(Round, (run_id, index, 0)) for index in (0, 1)]),
    )
    assert run is not None
    assert run.state == "COMPLETED"
    assert [row.state for row in rounds if row is not None] == ["COMMITTED", "COMMITTED"]
    assert coordinator.released == [run_id]


@pytest.mark.parametrize("coordinator", ["set-up"], indirect=True)
async def test_old_site_enrols_and_can_use_what_it_is_given(coordinator: WireCoordinator) -> None:
    for record, answers in await replay(coordinator, begins_at("set-up"), ends_at("set-up")):
        now, before = (old_view(record["path"], one) for one in (answers[0], decoded(record["responses"])[0]))
        certificate = certificate_from_pem(now.certificate_pem)  # type: ignore[attr-defined]
        certificate.verify_directly_issued_by(certificate_from_pem(now.root_pem))  # type: ignore[attr-defined]
        recorded = certificate_from_pem(before.certificate_pem)  # type: ignore[attr-defined]
        assert site_id_from_certificate(certificate) == before.site_id  # type: ignore[attr-defined]
        assert certificate.public_key() == recorded.public_key()
        assert {one.oid for one in certificate.extensions} >= {one.oid for one in recorded.extensions}
        for message in (now, before):
            message.ClearField("certificate_pem")
        assert now == before


@pytest.mark.parametrize(
    ("coordinator", "part"),
    [("enrolled", "enrolled"), ("upload-half-way", "upload-half-way")],
    indirect=["coordinator"],
)
async def test_round_that_this_version_opens_has_a_manifest_that_old_sites_read(
    coordinator: WireCoordinator, part: str
) -> None:
    await replay(coordinator, begins_at(part), ends_at(part))
    polls = [one for one in transcript()["records"][ends_at(part) :] if one.get("path", "").endswith(_POLL)]
    asked = next(one for one in polls if instruction(one) == "train")
    request = old_types(asked["path"])[0]()
    answer = await coordinator.call(SiteId("d-site"), asked["path"], [request.SerializeToString()])
    now, before = (old_view(asked["path"], one).train for one in (answer.responses[0], decoded(asked["responses"])[0]))  # type: ignore[attr-defined]
    assert now.round == before.round
    spki = seeded_signer("coordinator").spki_der
    signed = [SignedBody(body=one.manifest.body, signature=one.manifest.signature) for one in (now, before)]
    mine, theirs = (RoundManifest.decode(verify_body(spki, "SA1/sig/M0", one)) for one in signed)
    may_differ = {"audit_size", "audit_head"}
    for name in RoundManifest.__dataclass_fields__.keys() - may_differ:
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.audit_size >= theirs.audit_size


@pytest.mark.parametrize("coordinator", ["upload-half-way"], indirect=True)
async def test_audit_log_goes_on_across_the_versions(coordinator: WireCoordinator) -> None:
    await replay(coordinator, begins_at("upload-half-way"), ends_at("upload-half-way"))

    def read(session: Session) -> tuple[list[Leaf], list[SignedBody]]:
        rows = session.query(AuditRow).order_by(AuditRow.seq)
        heads = session.query(AuditCheckpoint).order_by(AuditCheckpoint.size)
        return (
            [Leaf(seq=row.seq, body=row.body, leaf_sha256=row.leaf_sha256) for row in rows],  # type: ignore[arg-type]
            [SignedBody(body=one.body, signature=one.signature) for one in heads],
        )

    rows, heads = coordinator.db.read("audit", read)
    assert len(heads) > 1
    assert isinstance(verify_log(rows, heads, seeded_signer("coordinator").spki_der), AuditVerified)


def test_site_of_this_version_reads_every_answer_of_the_last_coordinator() -> None:
    kinds, receipts = set(), 0
    for record in transcript()["records"]:
        path = record.get("path", "")
        answers = decoded(record.get("responses", []))
        if path.endswith(_POLL):
            kinds.add(type(instruction_from_proto(round_pb2.PollAssignmentResponse.FromString(answers[0]))))
        elif path.endswith("UploadBlob") and answers:
            receipt = signed_from_proto(round_pb2.UploadBlobResponse.FromString(answers[0]).receipt)
            header = round_pb2.UploadBlobRequest.FromString(decoded(record["requests"])[0]).header
            _check(receipt, header, site=record["site"])
            receipts += 1
        elif path.endswith("GetRun"):
            detail = run_pb2.GetRunResponse.FromString(answers[0])
            assert detail.run_spec_json
            assert detail.initial_state_blob_sha256
    assert len(kinds) == 9
    assert {Idle, TrainRound} <= kinds
    assert receipts == 9


def _check(receipt: SignedBody, header: round_pb2.UploadHeader, *, site: str) -> None:
    n_bytes = u64_from_bytes(unpack(SignedBody.decode(header.masked_input).body, 4)[3])
    verify_receipt(
        receipt,
        coordinator_spki=seeded_signer("coordinator").spki_der,
        site_id=SiteId(site),
        context=exchange_from_proto(header.exchange),
        header=header.masked_input,
        n_bytes=n_bytes,
    )


def test_recorded_conversation_holds_what_it_should() -> None:
    records = [record for record in transcript()["records"] if "path" in record]
    methods = {record["path"].rpartition("/")[2] for record in records}
    everything = {
        method.name
        for name in ("EnrolmentService", "RoundService", "RunService")
        for method in old_protos().FindServiceByName(f"fl_protocol.wire.v1.{name}").methods
    }
    assert everything - methods == {"Complain", "Withdraw"}
    refused = [record for record in records if record["status"] != "OK"]
    assert [(record["site"], record["path"].rpartition("/")[2]) for record in refused] == [("b-site", "UploadBlob")]
