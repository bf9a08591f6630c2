"""Published sums: verified, folded from this site's own state, kept, acknowledged. The only way a state advances."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.codec.sums import read_sums
from fl_protocol.errors import ProtocolError
from fl_protocol.folds.public_state import PublicState
from fl_protocol.packing import pack, u32
from fl_protocol.secagg.messages import ExchangeResult, StatementKind
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.secagg.transcript import hash_manifest
from fl_protocol.signing.signed import SignedBody, sign_body, verify_body
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from site_agent.errors import CoordinatorRefusedError, RoundRefusedError
from site_agent.link.instructions import PublishedResult
from site_agent.session.events import round_of
from site_agent.state.payload_memory import RevealedExchange
from site_agent.state.private_states import PrivateStates
from site_agent.state.public_state import StoredState
from site_agent.supervision.approved_runs import ApprovedRun
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.sum_check import ACKNOWLEDGEMENT_KIND, SumChecker

_STATE_OVERHEAD_BYTES = 1 << 20
_FINISHABLE = frozenset({SitePhase.CONFIRMED, SitePhase.REVEALED})


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedStatement:
    """M10 that the coordinator signed for this exchange.

    Attributes:
        result: what it says.
        n_sites: over how many sites the sum is; known to a site that signed the survivors.
        is_counted: whether this site is one of them; None where it does not know by itself.
    """

    result: ExchangeResult
    n_sites: int | None
    is_counted: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSum:
    """A sum whose digest the coordinator signed and that was checked.

    Attributes:
        vector: the sum.
        result_sha256: of M10.
        n_sites: over how many sites it is; None where nobody showed it.
        is_counted: whether it is known that this site is one of them.
    """

    vector: RingVector
    result_sha256: str
    n_sites: int | None
    is_counted: bool


class Settler:
    """Advances public states."""

    def __init__(self, seams: SiteSeams) -> None:
        """Work with these seams."""
        self._seams = seams
        self._checker = SumChecker(seams)
        self._private = PrivateStates(seams.jobs.private_states_dir)

    async def catch_up(self, run: ApprovedRun, manifest: RoundManifest) -> StoredState:
        """This site's own state, brought to the version that a manifest names, by folding every missing result.

        Raises:
            RoundRefusedError: the manifest names another state than this site computed, or a result does not verify
                or is not shown.
            LinkError: the results could not be fetched.
        """
        stored = await self.reach(run, manifest.public_state_version)
        found = (stored.version, stored.sha256, stored.result_sha256 or NO_DIGEST)
        if found[:2] != (manifest.public_state_version, manifest.public_state_sha256):
            message = "the manifest starts from another state than this site computed"
            raise _refused("public-state-mismatch", message, manifest)
        if found[2] != manifest.previous_result_sha256:
            message = "the manifest names another result than the one this site folded last"
            raise _refused("previous-result-mismatch", message, manifest)
        return stored

    async def reach(self, run: ApprovedRun, version: int) -> StoredState:
        """This site's newest own state, once it is at least of that version. Raises as ``catch_up``."""
        seams = self._seams
        stored = await asyncio.to_thread(seams.states.newest, run.run_id) or await self._fetch_initial(run)
        while stored.version < version:
            signed, published = await self._get_result(run, stored.version)
            after = await self.settle(run, signed, published)
            if after.version <= stored.version:
                message = "the coordinator's results do not lead to the state that it names"
                raise RoundRefusedError(message, reason="public-state-mismatch", run_id=run.run_id)
            stored = after
        return stored

    async def _get_result(self, run: ApprovedRun, round_index: int) -> tuple[SignedBody, PublishedResult]:
        try:
            return await self._seams.client.get_result(run.run_id, round_index)
        except CoordinatorRefusedError as error:
            if error.status != "NOT_FOUND":
                raise
            message = "the coordinator goes on from a result that it does not show"
            raise RoundRefusedError(
                message, reason="result-withheld", run_id=run.run_id, round_index=round_index
            ) from error

    async def settle(
        self, run: ApprovedRun, signed: SignedBody, published: PublishedResult, *, role: SiteRole | None = None
    ) -> StoredState:
        """Verify one result and fold it; a result that was folded before is only looked up.

        Args:
            run: the approved run.
            signed: the round's M0, as received.
            published: M10 and where the sum lies.
            role: this site's role in the exchange, if it took part.

        Raises:
            RoundRefusedError: something does not verify; the reason says what.
            LinkError: the sum could not be fetched.
        """
        seams = self._seams
        manifest = self._read_manifest(run, signed, published)
        # Safety: before anything is folded. The coordinator's signature alone makes a result of this round; only the
        # exchange in which shares were revealed, for the survivors that were signed there, shows what became of them.
        revealed = await asyncio.to_thread(seams.book.revealed_in, round_of(published.exchange))
        statement = self._verify(manifest, published, role=role, revealed=revealed)
        result_sha256 = hashlib.sha256(published.message).hexdigest()
        base = await asyncio.to_thread(seams.states.find, run.run_id, manifest.public_state_version)
        if base is None or base.sha256 != manifest.public_state_sha256:
            message = "the result belongs to a state that this site did not compute"
            raise _refused("public-state-mismatch", message, manifest)
        after = base
        if manifest.kind is RoundKind.TRAIN:
            known = await asyncio.to_thread(seams.states.find, run.run_id, base.version + 1)
            if known is not None and known.result_sha256 != result_sha256:
                raise _refused("result-changed", "this site folded another result of this round", manifest)
            after = known or await self._fold(run, manifest, published, base=base, statement=statement)
        else:
            await self._fold(run, manifest, published, base=base, statement=statement)
        await asyncio.to_thread(
            seams.book.record_settled,
            published.exchange,
            result_sha256=result_sha256,
            public_state_sha256=after.sha256,
            ends_run=run.is_last_round(manifest.round_index),
        )
        return after

    async def acknowledge(self, published: PublishedResult, after: StoredState) -> None:
        """Sign which state this site computed, and send it. Sending again sends the same bytes."""
        context = published.exchange
        body = pack(
            context.run_id.encode(),
            u32(context.round_index),
            hashlib.sha256(published.message).digest(),
            bytes.fromhex(after.sha256),
        )
        acknowledgement = sign_body(self._seams.signer, ACKNOWLEDGEMENT_KIND, body)
        await self._seams.client.acknowledge_result(context, acknowledgement=acknowledgement)

    def _read_manifest(self, run: ApprovedRun, signed: SignedBody, published: PublishedResult) -> RoundManifest:
        manifest = read_manifest(signed, coordinator_spki=self._seams.coordinator_spki)
        context = published.exchange
        named = (manifest.run_id, manifest.round_index, manifest.round_attempt)
        if named != (context.run_id, context.round_index, context.round_attempt) or manifest.run_id != run.run_id:
            raise _refused("manifest-mismatch", "the result is of another round than the manifest", manifest)
        if manifest.run_spec_sha256 != run.run_spec_sha256:
            raise _refused("run-spec-mismatch", "the manifest names another run spec", manifest)
        return manifest

    async def _fold(
        self,
        run: ApprovedRun,
        manifest: RoundManifest,
        published: PublishedResult,
        *,
        base: StoredState,
        statement: VerifiedStatement,
    ) -> StoredState:
        verified = await self._fetch_sum(run, manifest, published, statement=statement)
        try:
            state = await asyncio.to_thread(self._fold_in_thread, run, manifest, verified, base=base)
        except ProtocolError as error:
            raise _refused("result-implausible", "the sum cannot be a sum of this cohort", manifest) from error
        if manifest.kind is RoundKind.EVALUATE:
            return base
        # Before the state is saved: a state that is there is not folded again, and this would not be made good for.
        await asyncio.to_thread(self._private.decide, round_of(published.exchange), is_counted=verified.is_counted)
        return await asyncio.to_thread(self._seams.states.save, run.run_id, state, result_sha256=verified.result_sha256)

    def _fold_in_thread(
        self, run: ApprovedRun, manifest: RoundManifest, verified: VerifiedSum, *, base: StoredState
    ) -> PublicState:
        sums = read_sums(verified.vector, run.payload_layout(manifest.kind), n_sites=verified.n_sites)
        before = self._seams.states.load(base)
        folded = run.algorithm.fold(
            sums, before, spec=run.spec, layout=run.layout, kind=manifest.kind, n_sites=verified.n_sites
        )
        return folded.state

    def _verify(
        self,
        manifest: RoundManifest,
        published: PublishedResult,
        *,
        role: SiteRole | None,
        revealed: RevealedExchange | None,
    ) -> VerifiedStatement:
        """M10, checked against the role where there is one, and against the reveal where there was one."""
        n_sites: int | None = None
        # Who revealed shares was among the survivors that it signed, and the result is held to those below.
        is_counted = True if revealed is not None else None
        try:
            if role is not None and role.phase in _FINISHABLE:
                n_sites, is_counted = len(role.survivors), self._seams.site_id in role.survivors
                result = role.finish(published.message)
            else:
                result = self._read_result(manifest, published)
        except ProtocolError as error:
            raise _refused("result-unverified", "M10 does not verify", manifest) from error
        found = RevealedExchange(context=published.exchange, h_survivors=result.h_survivors)
        if revealed is not None and revealed != found:
            message = "the result is not that of the exchange in which this site revealed shares"
            raise _refused("result-unverified", message, manifest)
        return VerifiedStatement(result=result, n_sites=n_sites, is_counted=is_counted)

    async def _fetch_sum(
        self, run: ApprovedRun, manifest: RoundManifest, published: PublishedResult, *, statement: VerifiedStatement
    ) -> VerifiedSum:
        layout, result = run.payload_layout(manifest.kind), statement.result
        if result.result_sha256.hex() != published.sum_blob_sha256 or published.sum_bytes != layout.n_bytes:
            raise _refused("result-unverified", "the sum is not the one that M10 names", manifest)
        data = await self._seams.downloader.download(run.run_id, published.sum_blob_sha256, max_bytes=layout.n_bytes)
        vector = RingVector.from_bytes(data, n32=layout.n_ring32, n64=layout.n_ring64, is_shared=True)
        # Safety: before anything is folded, and only now that the coordinator has fixed all of the sum.
        sites = await self._checker.check(run, manifest, published, result=result, total=vector)
        return VerifiedSum(
            vector=vector,
            result_sha256=hashlib.sha256(published.message).hexdigest(),
            n_sites=len(sites) or statement.n_sites,
            is_counted=self._seams.site_id in sites if statement.is_counted is None else statement.is_counted,
        )

    def _read_result(self, manifest: RoundManifest, published: PublishedResult) -> ExchangeResult:
        """M10 as a site reads it that has no role in the exchange: it cannot know the survivors."""
        signed = SignedBody.decode(published.message)
        result = ExchangeResult.decode(verify_body(self._seams.coordinator_spki, StatementKind.M10.value, signed))
        context = published.exchange
        h_manifest = hash_manifest(
            manifest.encode(), exchange_index=context.exchange_index, exchange_attempt=context.exchange_attempt
        )
        if result.h_manifest != h_manifest:
            raise _refused("result-unverified", "M10 is of another exchange", manifest)
        return result

    async def _fetch_initial(self, run: ApprovedRun) -> StoredState:
        """Version 0: what ``init-adapter`` made and the approved run spec names (decision 9)."""
        n_bytes = 8 * run.layout.n_parameters + _STATE_OVERHEAD_BYTES
        data = await self._seams.downloader.download(run.run_id, run.initial_state_sha256, max_bytes=n_bytes)
        try:
            state = PublicState.from_bytes(data)
            run.layout.check(state.adapter)
        except ProtocolError as error:
            raise _initial_refused(run) from error
        if state.version != 0 or state.digest() != run.spec.adapter.initial_sha256:
            raise _initial_refused(run)
        return await asyncio.to_thread(self._seams.states.save, run.run_id, state, result_sha256=None)


def read_manifest(signed: SignedBody, *, coordinator_spki: bytes) -> RoundManifest:
    """M0, once its signature is known to be the pinned coordinator's.

    Raises:
        RoundRefusedError: it is not, or the body is no manifest.
    """
    try:
        return RoundManifest.decode(verify_body(coordinator_spki, StatementKind.M0.value, signed))
    except ProtocolError as error:
        message = "the manifest is not the pinned coordinator's"
        raise RoundRefusedError(message, reason="manifest-unverified", cause=error.code) from error


def _refused(reason: str, message: str, manifest: RoundManifest) -> RoundRefusedError:
    return RoundRefusedError(message, reason=reason, run_id=manifest.run_id, round_index=manifest.round_index)


def _initial_refused(run: ApprovedRun) -> RoundRefusedError:
    message = "the initial state is not the one that the run spec names"
    return RoundRefusedError(message, reason="initial-state-mismatch", run_id=run.run_id)
