"""A coordinator that attacks, on the real wire: what it shows can be altered at every place, and it keeps all it hears.

``HostileCoordinator`` runs honest rounds where it is not told otherwise. ``RoundWire`` and ``RunWire`` put it behind
the two gRPC services, with mutual TLS, streams and receipts as the real coordinator's; the sites that talk to it are
real agents over their real link. Whatever it heard is held against the promises of the protocol after every test.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import grpc

from coordinator.errors import BlobOffsetError, InvalidMessageError, NotFoundError
from coordinator.gateway.admission import calling_site
from fl_protocol.codec import merkle
from fl_protocol.codec.chunks import CHUNK_BYTES, ChunkTreeBuilder
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import pack, u64
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.messages import Reveal, UploadHeader
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.wire.convert import (
    exchange_from_proto,
    proto_from_exchange,
    proto_from_round,
    proto_from_signed,
    round_from_proto,
    signed_from_proto,
)
from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc, run_pb2, run_pb2_grpc
from site_agent.errors import CoordinatorRefusedError
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction
from site_agent.link.receipts import RECEIPT_KIND
from site_agent.session.events import DeclineKind, Step, round_of
from tests.integration.site_agent.conftest import RUN_ID, FakeCoordinator
from tests.support.agent_fakes import LAYOUT

Alters = Callable[[SiteId, Instruction], Instruction]
INSTANT = "2026-01-02T03:04:05Z"
DECLINE_KINDS = {
    round_pb2.DECLINE_KIND_REFUSED: DeclineKind.REFUSED,
    round_pb2.DECLINE_KIND_FAILED: DeclineKind.FAILED,
}


@dataclass
class HostileCoordinator(FakeCoordinator):
    """What it shows is what the honest one would, unless ``alters`` has something for that kind of instruction."""

    run_id: RunId = RUN_ID
    layout_json: bytes = field(default_factory=LAYOUT.canonical_bytes)
    alters: dict[type[Instruction], Alters] = field(default_factory=dict)
    shown: list[tuple[SiteId, Instruction]] = field(default_factory=list)
    heard: list[tuple[Step, ExchangeContext, SiteId, bytes]] = field(default_factory=list)
    arrived: dict[tuple[bytes, SiteId], list[bytes]] = field(default_factory=lambda: defaultdict(list))
    receipts: dict[tuple[bytes, SiteId], SignedBody] = field(default_factory=dict)
    n_forgotten_uploads: int = 0
    receipt_signer: Signer = field(default_factory=lambda: seeded_signer("coordinator"))
    statements: dict[SiteId, SignedBody] = field(default_factory=dict)

    @property
    def round(self) -> RoundContext:
        return RoundContext(run_id=self.run_id, round_index=self.round_index, round_attempt=self.round_attempt)

    @property
    def context(self) -> ExchangeContext:
        return ExchangeContext(
            run_id=self.run_id,
            round_index=self.round_index,
            round_attempt=self.round_attempt,
            exchange_index=0,
            exchange_attempt=self.exchange_attempt,
        )

    def make_manifest(self, **changes: object) -> SignedBody:
        return super().make_manifest(**{"run_id": self.run_id, **changes})

    def hear(self, step: Step, context: ExchangeContext, site: SiteId, message: bytes) -> None:
        self.heard.append((step, context, site, message))
        self.said.setdefault((step, context.encode(), site), set()).add(message)

    def show(self, site: SiteId, holding: Sequence[RoundContext]) -> Instruction:
        instruction = self.instruction(site, holding)
        altered = self.alters.get(type(instruction), lambda _, same: same)(site, instruction)
        self.shown.append((site, altered))
        return altered

    def shown_of(self, kind: type[Instruction], site: SiteId) -> list[Instruction]:
        return [shown for to, shown in self.shown if to == site and isinstance(shown, kind)]

    def take_upload(self, site: SiteId, context: ExchangeContext, header: bytes, data: bytes) -> None:
        self.hear(Step.MASK, context, site, header)
        self.arrived[context.encode(), site].append(data)
        if context == self.context:
            layout = self.opened.layout
            self.uploads[site] = RingVector.from_bytes(data, n32=layout.n_ring32, n64=layout.n_ring64)

    def receipt(self, site: SiteId, context: ExchangeContext, header: bytes, data: bytes) -> SignedBody:
        if (context.encode(), site) not in self.receipts:
            tree = ChunkTreeBuilder()
            for start in range(0, len(data), CHUNK_BYTES):
                tree.add(data[start : start + CHUNK_BYTES])
            what = (hashlib.sha256(header).digest(), u64(len(data)), tree.root())
            body = pack(context.encode(), site.encode(), *what, INSTANT.encode())
            self.receipts[context.encode(), site] = sign_body(self.receipt_signer, RECEIPT_KIND, body)
        return self.receipts[context.encode(), site]

    def survivors_among(self, names: Collection[str]) -> coordinator_role.SurvivingCohort:
        """The survivor set of these sites, out of what they uploaded; whether or not it was named before."""
        uploaded = {site: m5 for site, m5 in self.messages(Step.MASK).items() if site in names}
        return coordinator_role.freeze_survivors(self.frozen["sharers"], uploaded)  # type: ignore[arg-type]

    def heard_of(self, step: Step, site: SiteId | None = None) -> list[bytes]:
        """Every message of that step, of all exchanges and repetitions."""
        return [message for said, _, by, message in self.heard if said is step and site in (None, by)]

    def leaks(self) -> list[str]:
        """Where what was heard breaks a promise that each site keeps whatever it is shown."""
        return [
            *self._second_words(),
            *self._second_vectors(),
            *self._both_kinds(),
            *self._second_reveals(),
        ]

    def _second_words(self) -> Iterator[str]:
        for (step, context, site), messages in self.said.items():
            if len(messages) > 1:
                yield f"{site} said two different {step.value} in {context!r}"

    def _second_vectors(self) -> Iterator[str]:
        for (_, site), sent in self.arrived.items():
            if len(set(sent)) > 1:
                yield f"{site} sent two masked inputs in one exchange"

    def _both_kinds(self) -> Iterator[str]:
        kinds: dict[tuple[bytes, SiteId], set[str]] = defaultdict(set)
        for step, context, _, message in self.heard:
            if step is Step.REVEAL:
                for share in Reveal.decode(SignedBody.decode(message).body).shares:
                    kinds[context.encode(), share.peer].add(share.kind.value)
        yield from (f"both secrets of {peer} were shared" for (_, peer), found in kinds.items() if len(found) > 1)

    def _second_reveals(self) -> Iterator[str]:
        """In an attempt at a round a site reveals in one exchange, for one set of survivors."""
        revealed: dict[tuple[RoundContext, SiteId], set[bytes]] = defaultdict(set)
        for step, context, site, message in self.heard:
            if step is Step.REVEAL:
                said = Reveal.decode(SignedBody.decode(message).body)
                revealed[round_of(context), site].add(context.encode() + said.h_survivors)
        yield from (f"{site} revealed twice in {at}" for (at, site), found in revealed.items() if len(found) > 1)


def proto_from_instruction(instruction: Instruction) -> round_pb2.PollAssignmentResponse:  # noqa: PLR0911 - one a kind
    """An answer to PollAssignment, as the real servicer would write it."""
    pb = round_pb2
    match instruction:
        case asked.Idle():
            return pb.PollAssignmentResponse(idle=pb.Idle(retry_after_s=instruction.retry_after_s))
        case asked.TrainRound():
            signed = proto_from_signed(instruction.manifest)
            return pb.PollAssignmentResponse(
                train=pb.TrainRound(round=proto_from_round(instruction.round), manifest=signed)
            )
        case asked.AbandonRound():
            abandon = pb.AbandonRound(round=proto_from_round(instruction.round), reason=instruction.reason)
            return pb.PollAssignmentResponse(abandon=abandon)
        case asked.PublishedResult():
            return pb.PollAssignmentResponse(result=proto_from_result(instruction))
    exchange = proto_from_exchange(instruction.exchange)
    match instruction:
        case asked.OpenExchange():
            return pb.PollAssignmentResponse(open_exchange=pb.OpenExchange(exchange=exchange))
        case asked.RelayKeys():
            return pb.PollAssignmentResponse(keys=pb.RelayKeys(exchange=exchange, keys=instruction.message))
        case asked.RelayShares():
            return pb.PollAssignmentResponse(shares=pb.RelayShares(exchange=exchange, shares=instruction.message))
        case asked.RelaySurvivors():
            survivors = pb.RelaySurvivors(exchange=exchange, survivors=instruction.message)
            return pb.PollAssignmentResponse(survivors=survivors)
        case asked.RelayConfirmations():
            confirmations = pb.RelayConfirmations(exchange=exchange, confirmations=instruction.message)
            return pb.PollAssignmentResponse(confirmations=confirmations)


def proto_from_result(published: asked.PublishedResult) -> round_pb2.PublishedResult:
    return round_pb2.PublishedResult(
        exchange=proto_from_exchange(published.exchange),
        result=published.message,
        sum_blob_sha256=published.sum_blob_sha256,
        sum_bytes=published.sum_bytes,
    )


class RoundWire(round_pb2_grpc.RoundServiceServicer):
    """The rounds' service of a hostile coordinator; which one, may change in the middle."""

    def __init__(self) -> None:
        self.coordinator: HostileCoordinator
        self._partial: dict[tuple[bytes, SiteId], bytearray] = defaultdict(bytearray)

    def forget_uploads(self) -> None:
        """Know of no byte that arrived, and of no receipt."""
        self._partial.clear()
        self.coordinator.uploads.clear()
        self.coordinator.receipts.clear()

    async def PollAssignment(self, request, context):  # noqa: N802, ANN001, ANN201
        holding = [round_from_proto(held) for held in request.holding]
        return proto_from_instruction(self.coordinator.show(calling_site(), holding))

    async def AcceptRound(self, request, context):  # noqa: N802, ANN001, ANN201
        self.coordinator.accepted.add(calling_site())
        return round_pb2.AcceptRoundResponse()

    async def DeclineRound(self, request, context):  # noqa: N802, ANN001, ANN201
        self.coordinator.declined.append((calling_site(), DECLINE_KINDS[request.kind], request.reason))
        return round_pb2.DeclineRoundResponse()

    async def ReportProgress(self, request, context):  # noqa: N802, ANN001, ANN201
        return round_pb2.ReportProgressResponse()

    async def ReportReady(self, request, context):  # noqa: N802, ANN001, ANN201
        if round_from_proto(request.round) == self.coordinator.round:
            self.coordinator.ready.add(calling_site())
        return round_pb2.ReportReadyResponse()

    def _hear(self, step: Step, exchange: object, message: bytes) -> None:
        self.coordinator.hear(step, exchange_from_proto(exchange), calling_site(), message)

    async def AdvertiseKeys(self, request, context):  # noqa: N802, ANN001, ANN201
        self._hear(Step.ADVERTISE, request.exchange, request.advertisement)
        return round_pb2.AdvertiseKeysResponse()

    async def ShareKeys(self, request, context):  # noqa: N802, ANN001, ANN201
        self._hear(Step.SHARE, request.exchange, request.deal)
        return round_pb2.ShareKeysResponse()

    async def ConfirmSurvivors(self, request, context):  # noqa: N802, ANN001, ANN201
        self._hear(Step.CONFIRM, request.exchange, request.confirmation)
        return round_pb2.ConfirmSurvivorsResponse()

    async def RevealShares(self, request, context):  # noqa: N802, ANN001, ANN201
        self._hear(Step.REVEAL, request.exchange, request.reveal)
        return round_pb2.RevealSharesResponse()

    async def Complain(self, request, context):  # noqa: N802, ANN001, ANN201
        self.coordinator.complaints.append((calling_site(), request.complaint))
        return round_pb2.ComplainResponse()

    async def QueryUpload(self, request, context):  # noqa: N802, ANN001, ANN201
        key = (exchange_from_proto(request.exchange).encode(), calling_site())
        answer = round_pb2.QueryUploadResponse(received_bytes=len(self._partial[key]))
        receipt = self.coordinator.receipts.get(key)
        if receipt is not None:
            answer.receipt.CopyFrom(proto_from_signed(receipt))
        return answer

    async def UploadBlob(self, request_iterator, context):  # noqa: N802, ANN001, ANN201
        coordinator, site = self.coordinator, calling_site()
        first = await anext(request_iterator)
        exchange = exchange_from_proto(first.header.exchange)
        m5 = first.header.masked_input
        key = (exchange.encode(), site)
        held = self._partial[key]
        if first.header.offset != len(held):
            raise BlobOffsetError("the upload does not go on where it ended", held=len(held))
        async for part in request_iterator:
            if merkle.leaf_hash(part.chunk.data) != part.chunk.leaf_sha256:
                raise InvalidMessageError("a chunk was altered")
            held += part.chunk.data
        data = bytes(held)
        said = UploadHeader.decode(SignedBody.decode(m5).body)
        if said.n_bytes != len(data):
            raise InvalidMessageError("the upload is not as long as its header says")
        coordinator.take_upload(site, exchange, m5, data)
        if coordinator.n_forgotten_uploads:
            # Everything is here, and nothing of it is admitted: the site is to send it again.
            coordinator.n_forgotten_uploads -= 1
            self._partial[key] = bytearray()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        receipt = coordinator.receipt(site, exchange, m5, data)
        return round_pb2.UploadBlobResponse(receipt=proto_from_signed(receipt))

    async def AcknowledgeResult(self, request, context):  # noqa: N802, ANN001, ANN201
        exchange = exchange_from_proto(request.exchange)
        said = signed_from_proto(request.acknowledgement)
        self.coordinator.acknowledged.setdefault(exchange.round_index, {})[calling_site()] = said.body
        return round_pb2.AcknowledgeResultResponse()

    async def GetResult(self, request, context):  # noqa: N802, ANN001, ANN201
        if request.round_index not in self.coordinator.results:
            raise NotFoundError("this round has no result", round_index=request.round_index)
        manifest, published = self.coordinator.results[request.round_index]
        return round_pb2.GetResultResponse(manifest=proto_from_signed(manifest), result=proto_from_result(published))

    async def DownloadBlob(self, request, context):  # noqa: N802, ANN001, ANN201
        if request.sha256 not in self.coordinator.blobs:
            raise NotFoundError("the run publishes no such blob", run_id=request.run_id)
        blob = self.coordinator.blobs[request.sha256]
        for start in range(request.offset, len(blob), CHUNK_BYTES):
            data = blob[start : start + CHUNK_BYTES]
            yield round_pb2.DownloadBlobResponse(chunk=round_pb2.BlobChunk(offset=start, data=data))

    async def GetSumEvidence(self, request, context):  # noqa: N802, ANN001, ANN201
        answer = await _shown(context, lambda: self.coordinator.sum_evidence(calling_site(), request.round_index))
        return round_pb2.GetSumEvidenceResponse(evidence=answer.evidence)

    async def GetMaskedChunk(self, request, context):  # noqa: N802, ANN001, ANN201
        found = await _shown(
            context,
            lambda: self.coordinator.masked_chunk(
                calling_site(), request.round_index, SiteId(request.site_id), request.chunk_index
            ),
        )
        return round_pb2.GetMaskedChunkResponse(data=found.data, path=found.path)

    async def GetMaskedWindow(self, request, context):  # noqa: N802, ANN001, ANN201
        for of_site in sorted(self.coordinator.masked[request.round_index]):
            for index in range(request.first_chunk, request.first_chunk + request.n_chunks):
                asked = round_pb2.GetMaskedChunkRequest(
                    run_id=request.run_id, round_index=request.round_index, site_id=of_site, chunk_index=index
                )
                found = await self.GetMaskedChunk(asked, context)
                yield round_pb2.GetMaskedWindowResponse(
                    site_id=of_site, chunk_index=index, data=found.data, path=found.path
                )

    async def GetAuditConsistency(self, request, context):  # noqa: N802, ANN001, ANN201
        ranges = tuple((one.from_size, one.to_size) for one in request.ranges)
        answer = await _shown(context, lambda: self.coordinator.log.prove(ranges))
        proofs = [round_pb2.AuditProof(nodes=[bytes.fromhex(node) for node in proof]) for proof in answer.proofs]
        return round_pb2.GetAuditConsistencyResponse(proofs=proofs)


async def _shown(context, show):  # noqa: ANN001, ANN202
    """What a callback shows; where it refuses, the call ends with the status that it names."""
    try:
        return show()
    except CoordinatorRefusedError as refused:
        await context.abort(grpc.StatusCode[refused.status], str(refused))


class RunWire(run_pb2_grpc.RunServiceServicer):
    """The runs' service: the documents of its coordinator's run, as it shows them."""

    def __init__(self, rounds: RoundWire) -> None:
        self._rounds = rounds
        self.is_run_pending = False
        self.run_spec_json: bytes | None = None
        self.run_spec_sha256: str | None = None

    def _summary(self) -> run_pb2.RunSummary:
        coordinator = self._rounds.coordinator
        digest = self.run_spec_sha256 or coordinator.spec.digest()
        return run_pb2.RunSummary(run_id=coordinator.run_id, name="run", run_spec_sha256=digest, state="pending")

    async def ListPending(self, request, context):  # noqa: N802, ANN001, ANN201
        return run_pb2.ListPendingResponse(runs=[self._summary()] if self.is_run_pending else [])

    async def GetRun(self, request, context):  # noqa: N802, ANN001, ANN201
        spec = self._rounds.coordinator.spec
        return run_pb2.GetRunResponse(
            run=self._summary(),
            run_spec_json=self.run_spec_json or spec.canonical_bytes(),
            adapter_layout_json=self._rounds.coordinator.layout_json,
            initial_state_blob_sha256=spec.adapter.initial_sha256 or "",
        )

    async def SubmitApproval(self, request, context):  # noqa: N802, ANN001, ANN201
        self._rounds.coordinator.statements[calling_site()] = signed_from_proto(request.statement)
        return run_pb2.SubmitApprovalResponse()

    async def Withdraw(self, request, context):  # noqa: N802, ANN001, ANN201
        return run_pb2.WithdrawResponse()
