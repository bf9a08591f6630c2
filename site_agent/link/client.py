"""The calls of a site, typed: values in, values or typed errors out, and a deadline on each. Knows no round's rules."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc.aio

from fl_protocol.audit.chain import TreeHead
from fl_protocol.codec.chunks import IDLE_DEADLINE_S
from fl_protocol.ids import RunId, Sha256Hex, SiteId, run_id_from_text, sha256_hex_from_text, site_id_from_text
from fl_protocol.secagg.reexecution import MaskedChunk
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.wire.convert import proto_from_exchange, proto_from_round, proto_from_signed, signed_from_proto
from fl_protocol.wire.v1 import round_pb2, run_pb2, run_pb2_grpc
from site_agent.errors import AnswerInvalidError, CoordinatorRefusedError, LinkError
from site_agent.link.channel import CallChannel
from site_agent.link.chunk_calls import RoundCalls
from site_agent.link.instructions import (
    Instruction,
    PublishedResult,
    instruction_from_proto,
    result_from_proto,
)
from site_agent.link.refusals import is_call_unknown, typed_errors
from site_agent.link.transfer import moving_call
from site_agent.session.events import DeclineKind, Step
from site_agent.state.coordinator_log import CoordinatorLog

TAnswer = TypeVar("TAnswer")

CALL_TIMEOUT_S = 20.0
SUM_EVIDENCE_TIMEOUT_S = 60.0
"""The coordinator puts two hundred secrets together before it answers the first that asks."""
_POLL_GRACE_S = 15.0
_NOT_IN_A_CODE = re.compile(r"[^a-z0-9._:-]")

_DECLINE_KINDS = {
    DeclineKind.REFUSED: round_pb2.DECLINE_KIND_REFUSED,
    DeclineKind.FAILED: round_pb2.DECLINE_KIND_FAILED,
}
_ACTIVITIES = {
    "loading": round_pb2.SITE_ACTIVITY_LOADING,
    "evaluating": round_pb2.SITE_ACTIVITY_EVALUATING,
    "training": round_pb2.SITE_ACTIVITY_TRAINING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as the coordinator names it; nothing of it is believed before its digest is checked."""

    run_id: RunId
    name: str
    run_spec_sha256: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocuments:
    """What a site reads before it approves: the spec's canonical bytes, the adapter's layout, the initial state."""

    summary: RunSummary
    run_spec_json: bytes
    layout_json: bytes
    initial_state_sha256: Sha256Hex


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How much of a masked input the coordinator holds, and its receipt once it holds all."""

    received_bytes: int
    receipt: SignedBody | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SumWitness:
    """A site's word on a result, as the coordinator hands it on; worth nothing before key and signature are checked."""

    site_id: SiteId
    signing_spki: bytes
    acknowledgement: SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class SumEvidenceAnswer:
    """The evidence of a sum, empty where it was scrubbed; then the witnesses."""

    evidence: bytes
    witnesses: tuple[SumWitness, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownChunk:
    """One chunk, and of whose vector it is said to be."""

    site_id: str
    chunk_index: int
    chunk: MaskedChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConsistency:
    """Proofs about the coordinator's log, in the order asked, and the head that it holds of this site's own log."""

    proofs: tuple[tuple[str, ...], ...]
    held: TreeHead | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLogProof:
    """That the own log's head in an M1 and the head that the coordinator holds of it are of one log."""

    held_size: int
    proof: tuple[bytes, ...]


class CoordinatorClient:
    """The coordinator, as far as calls go.

    Every method raises CoordinatorUnavailableError, CoordinatorRefusedError or AnswerInvalidError, and nothing else.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | CallChannel,
        *,
        agent_version: str,
        coordinator_log: CoordinatorLog | None = None,
    ) -> None:
        """Speak over a channel of either transport; the caller closes it."""
        self._coordinator_log = coordinator_log
        self.rounds = RoundCalls(channel)
        self._runs = run_pb2_grpc.RunServiceStub(cast("grpc.aio.Channel", channel))
        self._agent_version = agent_version

    @property
    def coordinator_log(self) -> CoordinatorLog | None:
        """What it tells the coordinator with each question, and learns from its answers."""
        return self._coordinator_log

    async def poll_assignment(self, *, holding: Sequence[RoundContext], wait_s: float) -> Instruction:
        """Ask what to do now; the coordinator keeps the question open up to ``wait_s``."""
        request = round_pb2.PollAssignmentRequest(
            holding=[proto_from_round(round_context) for round_context in holding],
            wait_s=wait_s,
            agent_version=self._agent_version,
        )
        known = self._coordinator_log
        if known is not None:
            request.seen_audit_size = known.seen.size
            request.seen_audit_head = bytes.fromhex(known.seen.head)
            request.known_epoch = known.seen.epoch
        with typed_errors("PollAssignment"):
            answer = await self.rounds.PollAssignment(request, timeout=wait_s + _POLL_GRACE_S)
            instruction = instruction_from_proto(answer)
            restored = signed_from_proto(answer.restored) if answer.HasField("restored") else None
        if known is not None and restored is not None:
            await asyncio.to_thread(known.note_restored, restored)
        return instruction

    async def accept_round(self, round_context: RoundContext) -> None:
        """Take part."""
        request = round_pb2.AcceptRoundRequest(round=proto_from_round(round_context))
        with typed_errors("AcceptRound"):
            await self.rounds.AcceptRound(request, timeout=CALL_TIMEOUT_S)

    async def decline_round(self, round_context: RoundContext, kind: DeclineKind, *, reason: str) -> None:
        """Take no part, or no further. ``reason`` is a closed code, never a value computed from data."""
        request = round_pb2.DeclineRoundRequest(
            round=proto_from_round(round_context), kind=_DECLINE_KINDS[kind], reason=code_on_the_wire(reason)
        )
        with typed_errors("DeclineRound"):
            await self.rounds.DeclineRound(request, timeout=CALL_TIMEOUT_S)

    async def report_progress(self, round_context: RoundContext, activity: str, *, step: int, steps: int) -> None:
        """Say what the trainer does: state, step and steps, and nothing computed from data (decision 3)."""
        request = round_pb2.ReportProgressRequest(
            round=proto_from_round(round_context), activity=_ACTIVITIES[activity], step=step, steps=steps
        )
        with typed_errors("ReportProgress"):
            await self.rounds.ReportProgress(request, timeout=CALL_TIMEOUT_S)

    async def report_ready(self, round_context: RoundContext) -> None:
        """The payload is there."""
        request = round_pb2.ReportReadyRequest(round=proto_from_round(round_context))
        with typed_errors("ReportReady"):
            await self.rounds.ReportReady(request, timeout=CALL_TIMEOUT_S)

    async def send_statement(
        self, step: Step, context: ExchangeContext, *, message: bytes, own_log: OwnLogProof | None = None
    ) -> None:
        """Send M1, M3, M7 or M9; beside M1 what proves its head. M5 goes with its blob (``uploader``)."""
        exchange = proto_from_exchange(context)
        with typed_errors(f"send {step.value}"):
            match step:
                case Step.ADVERTISE:
                    advertise = round_pb2.AdvertiseKeysRequest(
                        exchange=exchange,
                        advertisement=message,
                        audit_held_size=0 if own_log is None else own_log.held_size,
                        audit_proof=() if own_log is None else own_log.proof,
                    )
                    await self.rounds.AdvertiseKeys(advertise, timeout=CALL_TIMEOUT_S)
                case Step.SHARE:
                    share = round_pb2.ShareKeysRequest(exchange=exchange, deal=message)
                    await self.rounds.ShareKeys(share, timeout=CALL_TIMEOUT_S)
                case Step.CONFIRM:
                    confirm = round_pb2.ConfirmSurvivorsRequest(exchange=exchange, confirmation=message)
                    await self.rounds.ConfirmSurvivors(confirm, timeout=CALL_TIMEOUT_S)
                case Step.REVEAL:
                    reveal = round_pb2.RevealSharesRequest(exchange=exchange, reveal=message)
                    await self.rounds.RevealShares(reveal, timeout=CALL_TIMEOUT_S)
                case Step.MASK:
                    raise LinkError("a masked input is sent by the uploader", step=step.value)

    async def complain(self, context: ExchangeContext, *, complaint: bytes) -> None:
        """Name a dealer whose share is bad."""
        request = round_pb2.ComplainRequest(exchange=proto_from_exchange(context), complaint=complaint)
        with typed_errors("Complain"):
            await self.rounds.Complain(request, timeout=CALL_TIMEOUT_S)

    async def query_upload(self, context: ExchangeContext) -> UploadStatus:
        """How far the upload of this exchange is."""
        request = round_pb2.QueryUploadRequest(exchange=proto_from_exchange(context))
        with typed_errors("QueryUpload"):
            answer = await self.rounds.QueryUpload(request, timeout=CALL_TIMEOUT_S)
            receipt = signed_from_proto(answer.receipt) if answer.HasField("receipt") else None
        return UploadStatus(received_bytes=answer.received_bytes, receipt=receipt)

    async def acknowledge_result(self, context: ExchangeContext, *, acknowledgement: SignedBody) -> None:
        """Say which public state this site computed from a published sum."""
        request = round_pb2.AcknowledgeResultRequest(
            exchange=proto_from_exchange(context), acknowledgement=proto_from_signed(acknowledgement)
        )
        with typed_errors("AcknowledgeResult"):
            await self.rounds.AcknowledgeResult(request, timeout=CALL_TIMEOUT_S)

    async def get_result(self, run_id: RunId, round_index: int) -> tuple[SignedBody, PublishedResult]:
        """The signed manifest and the result of a committed round."""
        request = round_pb2.GetResultRequest(run_id=run_id, round_index=round_index)
        with typed_errors("GetResult"):
            answer = await self.rounds.GetResult(request, timeout=CALL_TIMEOUT_S)
            return signed_from_proto(answer.manifest), result_from_proto(answer.result)

    async def get_sum_evidence(self, run_id: RunId, round_index: int) -> SumEvidenceAnswer:
        """What a published sum is put together from; or, once that is scrubbed, who acknowledged it."""
        request = round_pb2.GetSumEvidenceRequest(run_id=run_id, round_index=round_index)
        with typed_errors("GetSumEvidence"):
            answer = await self.rounds.GetSumEvidence(request, timeout=SUM_EVIDENCE_TIMEOUT_S)
            witnesses = tuple(
                SumWitness(
                    site_id=site_id_from_text(witness.site_id),
                    signing_spki=witness.signing_spki_der,
                    acknowledgement=signed_from_proto(witness.acknowledgement),
                )
                for witness in answer.witnesses
            )
        return SumEvidenceAnswer(evidence=answer.evidence, witnesses=witnesses)

    async def get_masked_window(
        self, run_id: RunId, round_index: int, *, of_sites: Sequence[SiteId], chunks: range
    ) -> AsyncGenerator[ShownChunk, None]:
        """The same chunks of what each survivor uploaded, as they arrive; nothing of them is checked yet.

        Args:
            run_id: the run.
            round_index: of a committed round.
            of_sites: the survivors, ascending; only a coordinator that knows no windows is told them, chunk by chunk.
            chunks: neighbours, at least one.
        """
        request = round_pb2.GetMaskedWindowRequest(
            run_id=run_id, round_index=round_index, first_chunk=chunks.start, n_chunks=len(chunks)
        )
        answers = aiter(self.rounds.GetMaskedWindow(request, timeout=None))
        n_shown = 0
        try:
            while (answer := await _next_of(answers, "GetMaskedWindow")) is not None:
                chunk = MaskedChunk(data=answer.data, path=tuple(answer.path))
                yield ShownChunk(site_id=answer.site_id, chunk_index=answer.chunk_index, chunk=chunk)
                n_shown += 1
        except CoordinatorRefusedError as error:
            if n_shown or not is_call_unknown(error):
                raise
        else:
            return
        for site in of_sites:
            for index in chunks:
                chunk = await self._get_masked_chunk(run_id, round_index, of_site=site, chunk_index=index)
                yield ShownChunk(site_id=site, chunk_index=index, chunk=chunk)

    async def _get_masked_chunk(
        self, run_id: RunId, round_index: int, *, of_site: SiteId, chunk_index: int
    ) -> MaskedChunk:
        request = round_pb2.GetMaskedChunkRequest(
            run_id=run_id, round_index=round_index, site_id=of_site, chunk_index=chunk_index
        )
        with typed_errors("GetMaskedChunk"):
            answer = await self.rounds.GetMaskedChunk(request, timeout=IDLE_DEADLINE_S)
        return MaskedChunk(data=answer.data, path=tuple(answer.path))

    async def get_audit_consistency(self, ranges: tuple[tuple[int, int], ...]) -> AuditConsistency:
        """Proofs that the coordinator's log at the second size of each range continues that at the first."""
        request = round_pb2.GetAuditConsistencyRequest(
            ranges=[round_pb2.AuditRange(from_size=old, to_size=new) for old, new in ranges]
        )
        with typed_errors("GetAuditConsistency"):
            answer = await self.rounds.GetAuditConsistency(request, timeout=CALL_TIMEOUT_S)
        if len(answer.proofs) != len(ranges) or len(answer.held_head) not in (0, 32):
            raise AnswerInvalidError("the coordinator's answer is malformed", call="GetAuditConsistency")
        held = TreeHead(size=answer.held_size, root=Sha256Hex(answer.held_head.hex())) if answer.held_head else None
        return AuditConsistency(
            proofs=tuple(tuple(node.hex() for node in proof.nodes) for proof in answer.proofs), held=held
        )

    async def list_pending(self) -> tuple[RunSummary, ...]:
        """The runs that wait for this site's word."""
        with typed_errors("ListPending"):
            answer = await self._runs.ListPending(run_pb2.ListPendingRequest(), timeout=CALL_TIMEOUT_S)
            return tuple(_summary(proto) for proto in answer.runs)

    async def get_run(self, run_id: RunId) -> RunDocuments:
        """A run's documents."""
        with typed_errors("GetRun"):
            answer = await self._runs.GetRun(run_pb2.GetRunRequest(run_id=run_id), timeout=CALL_TIMEOUT_S)
            return RunDocuments(
                summary=_summary(answer.run),
                run_spec_json=answer.run_spec_json,
                layout_json=answer.adapter_layout_json,
                initial_state_sha256=sha256_hex_from_text(answer.initial_state_blob_sha256),
            )

    async def submit_approval(self, run_id: RunId, *, statement: SignedBody) -> None:
        """Send the site's signed yes or no."""
        request = run_pb2.SubmitApprovalRequest(run_id=run_id, statement=proto_from_signed(statement))
        with typed_errors("SubmitApproval"):
            await self._runs.SubmitApproval(request, timeout=CALL_TIMEOUT_S)

    async def withdraw(self, run_id: RunId, *, statement: SignedBody) -> None:
        """Take the site's approval back."""
        request = run_pb2.WithdrawRequest(run_id=run_id, statement=proto_from_signed(statement))
        with typed_errors("Withdraw"):
            await self._runs.Withdraw(request, timeout=CALL_TIMEOUT_S)

    async def report_dataset_withdrawn(self, *, statement: SignedBody) -> None:
        """Say that this site took a dataset out of use."""
        request = run_pb2.ReportDatasetWithdrawnRequest(statement=proto_from_signed(statement))
        with typed_errors("ReportDatasetWithdrawn"):
            await self._runs.ReportDatasetWithdrawn(request, timeout=CALL_TIMEOUT_S)


def code_on_the_wire(reason: str) -> str:
    """A reason in the alphabet of codes. A rule's name may contain a dataset's, which is freer than that."""
    return _NOT_IN_A_CODE.sub("-", reason.lower()).lstrip("._:-")[:100] or "refused"


def _summary(proto: run_pb2.RunSummary) -> RunSummary:
    return RunSummary(
        run_id=run_id_from_text(proto.run_id),
        name=proto.name[:200],
        run_spec_sha256=proto.run_spec_sha256,
        state=proto.state,
    )


async def _next_of(answers: AsyncIterator[TAnswer], call: str) -> TAnswer | None:
    """The next answer of a stream, None at its end. The time between two questions is the asker's own."""
    async with moving_call(call, idle_s=IDLE_DEADLINE_S):
        with typed_errors(call):
            return await anext(answers, None)
