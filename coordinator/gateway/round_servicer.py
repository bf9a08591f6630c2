"""RoundService: one method a message of a round. The messages of SA1 pass as the exact bytes that were signed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from coordinator.errors import InvalidMessageError
from coordinator.gateway.admission import calling_site
from coordinator.gateway.instruction_protos import proto_from_instruction, proto_from_result
from coordinator.gateway.interceptors import Context
from coordinator.rounds.instructions import RoundRef
from coordinator.services.accept_advertisement import OwnLogProof, accept_advertisement
from coordinator.services.accept_complaint import accept_complaint
from coordinator.services.accept_confirmation import accept_confirmation
from coordinator.services.accept_reveal import accept_reveal
from coordinator.services.accept_round import DeclineKind, accept_round, decline_round
from coordinator.services.accept_shares import accept_shares
from coordinator.services.accept_upload import accept_upload, query_upload
from coordinator.services.acknowledge_result import acknowledge_result
from coordinator.services.context import EngineContext
from coordinator.services.epochs import meet_site
from coordinator.services.get_result import download_blob, get_result
from coordinator.services.get_sum_evidence import get_masked_chunk, get_masked_window, get_sum_evidence
from coordinator.services.poll_instruction import poll_instruction
from coordinator.services.prove_audit import LogRange, prove_audit
from coordinator.services.receive_upload import BlobPart
from coordinator.services.report_progress import SiteActivity, report_progress, report_ready
from fl_protocol.ids import sha256_hex_from_text, site_id_from_text
from fl_protocol.wire.blob_chunks import ChunkMessage, DownloadResponse, UploadRequest, WireChunk
from fl_protocol.wire.convert import (
    exchange_from_proto,
    proto_from_signed,
    round_from_proto,
    run_id_from_proto,
    signed_from_proto,
)
from fl_protocol.wire.v1 import round_pb2, round_pb2_grpc

_ACTIVITIES: Mapping[int, SiteActivity] = {
    round_pb2.SITE_ACTIVITY_LOADING: SiteActivity.LOADING,
    round_pb2.SITE_ACTIVITY_EVALUATING: SiteActivity.EVALUATING,
    round_pb2.SITE_ACTIVITY_TRAINING: SiteActivity.TRAINING,
}
_DECLINE_KINDS: Mapping[int, DeclineKind] = {
    round_pb2.DECLINE_KIND_REFUSED: DeclineKind.REFUSED,
    round_pb2.DECLINE_KIND_FAILED: DeclineKind.FAILED,
}
_MAX_HOLDING = 1000


class RoundServicer(round_pb2_grpc.RoundServiceServicer):
    """Translates messages into calls of the engine's services."""

    def __init__(self, engine: EngineContext) -> None:
        """Take what the services work with."""
        self._engine = engine

    async def PollAssignment(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.PollAssignmentRequest, context: Context
    ) -> round_pb2.PollAssignmentResponse:
        """What this site should do now; waits for an answer for a while."""
        del context
        if len(request.holding) > _MAX_HOLDING:
            raise InvalidMessageError("a site holds fewer rounds", n_holding=len(request.holding))
        restored = await meet_site(
            self._engine,
            calling_site(),
            seen_size=request.seen_audit_size,
            seen_head=request.seen_audit_head,
            known_epoch=request.known_epoch,
        )
        instruction = await poll_instruction(
            self._engine,
            site_id=calling_site(),
            holding=[_ref_from_proto(held) for held in request.holding],
            wait_s=max(0.0, request.wait_s),
        )
        answer = proto_from_instruction(instruction)
        if restored is not None:
            answer.restored.CopyFrom(proto_from_signed(restored))
        return answer

    async def AcceptRound(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.AcceptRoundRequest, context: Context
    ) -> round_pb2.AcceptRoundResponse:
        """The site takes part."""
        del context
        await accept_round(self._engine, site_id=calling_site(), round=_ref_from_proto(request.round))
        return round_pb2.AcceptRoundResponse()

    async def DeclineRound(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.DeclineRoundRequest, context: Context
    ) -> round_pb2.DeclineRoundResponse:
        """The site does not take part, or no longer."""
        del context
        kind = _DECLINE_KINDS.get(request.kind)
        if kind is None:
            raise InvalidMessageError("a decline says whether the site refused or failed")
        await decline_round(
            self._engine,
            site_id=calling_site(),
            round=_ref_from_proto(request.round),
            kind=kind,
            reason=request.reason,
        )
        return round_pb2.DeclineRoundResponse()

    async def ReportProgress(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.ReportProgressRequest, context: Context
    ) -> round_pb2.ReportProgressResponse:
        """How far the site is: nothing computed from data."""
        del context
        activity = _ACTIVITIES.get(request.activity)
        if activity is None:
            raise InvalidMessageError("progress names an activity")
        await report_progress(
            self._engine,
            site_id=calling_site(),
            round=_ref_from_proto(request.round),
            activity=activity,
            step=request.step,
            steps=request.steps,
        )
        return round_pb2.ReportProgressResponse()

    async def ReportReady(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.ReportReadyRequest, context: Context
    ) -> round_pb2.ReportReadyResponse:
        """The site's payload is finished."""
        del context
        await report_ready(self._engine, site_id=calling_site(), round=_ref_from_proto(request.round))
        return round_pb2.ReportReadyResponse()

    async def AdvertiseKeys(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.AdvertiseKeysRequest, context: Context
    ) -> round_pb2.AdvertiseKeysResponse:
        """M1."""
        del context
        await accept_advertisement(
            self._engine,
            site_id=calling_site(),
            exchange=exchange_from_proto(request.exchange),
            m1=request.advertisement,
            own_log=OwnLogProof(held_size=request.audit_held_size, proof=tuple(request.audit_proof)),
        )
        return round_pb2.AdvertiseKeysResponse()

    async def ShareKeys(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.ShareKeysRequest, context: Context
    ) -> round_pb2.ShareKeysResponse:
        """M3."""
        del context
        await accept_shares(
            self._engine, site_id=calling_site(), exchange=exchange_from_proto(request.exchange), m3=request.deal
        )
        return round_pb2.ShareKeysResponse()

    async def Complain(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.ComplainRequest, context: Context
    ) -> round_pb2.ComplainResponse:
        """A share does not match its commitment."""
        del context
        await accept_complaint(
            self._engine,
            site_id=calling_site(),
            exchange=exchange_from_proto(request.exchange),
            complaint=request.complaint,
        )
        return round_pb2.ComplainResponse()

    async def QueryUpload(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.QueryUploadRequest, context: Context
    ) -> round_pb2.QueryUploadResponse:
        """How much of this site's upload is held."""
        del context
        status = await query_upload(
            self._engine, site_id=calling_site(), exchange=exchange_from_proto(request.exchange)
        )
        receipt = None if status.receipt is None else proto_from_signed(status.receipt)
        return round_pb2.QueryUploadResponse(received_bytes=status.received_bytes, receipt=receipt)

    async def UploadBlob(  # noqa: N802 # the method's name in the proto
        self, request_iterator: AsyncIterator[UploadRequest], context: Context
    ) -> round_pb2.UploadBlobResponse:
        """M5: the signed header, then the masked vector in chunks."""
        del context
        first = await anext(request_iterator, None)
        if not isinstance(first, round_pb2.UploadBlobRequest) or first.WhichOneof("part") != "header":
            raise InvalidMessageError("an upload begins with its header")
        receipt = await accept_upload(
            self._engine,
            site_id=calling_site(),
            exchange=exchange_from_proto(first.header.exchange),
            m5=first.header.masked_input,
            offset=first.header.offset,
            parts=_parts(request_iterator),
        )
        return round_pb2.UploadBlobResponse(receipt=proto_from_signed(receipt))

    async def ConfirmSurvivors(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.ConfirmSurvivorsRequest, context: Context
    ) -> round_pb2.ConfirmSurvivorsResponse:
        """M7."""
        del context
        await accept_confirmation(
            self._engine,
            site_id=calling_site(),
            exchange=exchange_from_proto(request.exchange),
            m7=request.confirmation,
        )
        return round_pb2.ConfirmSurvivorsResponse()

    async def RevealShares(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.RevealSharesRequest, context: Context
    ) -> round_pb2.RevealSharesResponse:
        """M9."""
        del context
        await accept_reveal(
            self._engine, site_id=calling_site(), exchange=exchange_from_proto(request.exchange), m9=request.reveal
        )
        return round_pb2.RevealSharesResponse()

    async def AcknowledgeResult(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.AcknowledgeResultRequest, context: Context
    ) -> round_pb2.AcknowledgeResultResponse:
        """The site's signature over the result and the state that it computed from it."""
        del context
        await acknowledge_result(
            self._engine,
            site_id=calling_site(),
            exchange=exchange_from_proto(request.exchange),
            acknowledgement=signed_from_proto(request.acknowledgement),
        )
        return round_pb2.AcknowledgeResultResponse()

    async def GetResult(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.GetResultRequest, context: Context
    ) -> round_pb2.GetResultResponse:
        """A committed round's result, for a site that was absent."""
        del context
        committed = await get_result(
            self._engine,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            round_index=request.round_index,
        )
        return round_pb2.GetResultResponse(
            manifest=proto_from_signed(committed.manifest), result=proto_from_result(committed.result)
        )

    async def DownloadBlob(  # type: ignore[override] # noqa: N802 # the method's name in the proto
        self, request: round_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[DownloadResponse]:
        """A published blob from an offset on."""
        del context
        parts = download_blob(
            self._engine,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            sha256=sha256_hex_from_text(request.sha256),
            offset=request.offset,
        )
        async for part in parts:
            chunk = WireChunk(
                offset=part.offset,
                data=part.data,
                leaf_sha256=part.leaf_sha256,
                prefix_sha256=part.prefix_sha256,
            )
            yield ChunkMessage(chunk=chunk)

    async def GetSumEvidence(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.GetSumEvidenceRequest, context: Context
    ) -> round_pb2.GetSumEvidenceResponse:
        """What a published sum is put together from; once that is scrubbed, who checked it."""
        del context
        answer = await get_sum_evidence(
            self._engine,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            round_index=request.round_index,
        )
        witnesses = [
            round_pb2.SumWitness(
                site_id=witness.site_id,
                signing_spki_der=witness.signing_spki,
                acknowledgement=proto_from_signed(witness.acknowledgement),
            )
            for witness in answer.witnesses
        ]
        return round_pb2.GetSumEvidenceResponse(evidence=answer.evidence, witnesses=witnesses)

    async def GetMaskedChunk(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.GetMaskedChunkRequest, context: Context
    ) -> round_pb2.GetMaskedChunkResponse:
        """One chunk of what a survivor uploaded, with its path."""
        del context
        sent = await get_masked_chunk(
            self._engine,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            round_index=request.round_index,
            of_site=site_id_from_text(request.site_id),
            chunk_index=request.chunk_index,
        )
        return round_pb2.GetMaskedChunkResponse(data=sent.data, path=sent.path)

    async def GetMaskedWindow(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.GetMaskedWindowRequest, context: Context
    ) -> AsyncIterator[round_pb2.GetMaskedWindowResponse]:
        """The same chunks of what every survivor uploaded, with their paths."""
        del context
        window = get_masked_window(
            self._engine,
            site_id=calling_site(),
            run_id=run_id_from_proto(request.run_id),
            round_index=request.round_index,
            chunks=range(request.first_chunk, request.first_chunk + request.n_chunks),
        )
        async for sent in window:
            yield round_pb2.GetMaskedWindowResponse(
                site_id=sent.site_id, chunk_index=sent.chunk_index, data=sent.data, path=sent.path
            )

    async def GetAuditConsistency(  # noqa: N802 # the method's name in the proto
        self, request: round_pb2.GetAuditConsistencyRequest, context: Context
    ) -> round_pb2.GetAuditConsistencyResponse:
        """Proofs that the audit log only grew, and what is held of the site's own."""
        del context
        found = await prove_audit(
            self._engine,
            calling_site(),
            [LogRange(from_size=asked.from_size, to_size=asked.to_size) for asked in request.ranges],
        )
        return round_pb2.GetAuditConsistencyResponse(
            proofs=[round_pb2.AuditProof(nodes=nodes) for nodes in found.proofs],
            held_size=found.held_size,
            held_head=found.held_head,
        )


def _ref_from_proto(proto: round_pb2.RoundRef) -> RoundRef:
    context = round_from_proto(proto)
    return RoundRef(run_id=context.run_id, round_index=context.round_index, round_attempt=context.round_attempt)


async def _parts(requests: AsyncIterator[UploadRequest]) -> AsyncIterator[BlobPart]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidMessageError("an upload has one header, and chunks after it")
        chunk = request.chunk
        yield BlobPart(offset=chunk.offset, data=chunk.data, leaf_sha256=chunk.leaf_sha256 or None)
