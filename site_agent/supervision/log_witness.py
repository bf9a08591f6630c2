"""The coordinator's log, watched: before this site joins a round it sees a proof that the log it was shown only grew.

M0 names the size and the head of the coordinator's log and is signed with its pinned key. Here that head is held
against every head that the site has seen and that no restore took back: the coordinator must prove (RFC 6962, 2.1.2)
that they are of one log. It cannot for two histories, whichever it shows to whom. In the other direction this site
proves beside each M1 that its own log continues the head that the coordinator holds of it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from fl_protocol.audit.chain import AuditProofInvalidError, TreeHead, verify_consistency
from fl_protocol.secagg.messages import KeyAdvertisement
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundManifest
from site_agent.audit.own_tree import OwnTree
from site_agent.errors import CoordinatorRefusedError, RoundRefusedError
from site_agent.link.client import AuditConsistency, OwnLogProof
from site_agent.state.coordinator_log import CoordinatorLog, SeenLog

log = structlog.get_logger(__name__)

FORKED = "history-forked"
"""Why a round is refused: the coordinator's log is not the one that this site saw."""
UNPROVEN = "history-unproven"
"""Why a round is refused: the coordinator gave no proof. A coordinator of before 0.2 has none to give."""
_LOG_SHORTER = "audit-log-shorter"


class AsksForProofs(Protocol):
    """The one call that a witness needs."""

    async def get_audit_consistency(self, ranges: tuple[tuple[int, int], ...]) -> AuditConsistency:
        """Proofs between sizes of the coordinator's log, and what it holds of this site's."""
        ...


class LogWitness:
    """Checks the coordinator's log, and proves the own."""

    def __init__(self, client: AsksForProofs, known: CoordinatorLog, own: OwnTree) -> None:
        """Ask this client, remember here, prove out of this log."""
        self._client = client
        self._known = known
        self._own = own
        self._held: TreeHead | None = None
        self._has_denounced = False
        self._forked_from: SeenLog | None = None

    async def check(self, manifest: RoundManifest, signed: SignedBody) -> None:
        """Join nothing that does not continue what was seen. ``signed`` is known to be the pinned coordinator's.

        Raises:
            RoundRefusedError: ``history-forked`` or ``history-unproven``.
            LinkError: the proof could not be fetched; the assignment comes again.
            SiteDatabaseError: what was found could not be recorded.
        """
        shown = TreeHead(size=manifest.audit_size, root=manifest.audit_head)
        pairs = [
            sorted((anchor, shown), key=lambda head: head.size)
            for anchor in self._known.seen.anchors
            if anchor != shown
        ]
        if any(older.size == newer.size for older, newer in pairs):
            raise await self._forked(manifest, signed, finding="one-size-two-heads")
        try:
            answer = await self._client.get_audit_consistency(tuple((older.size, newer.size) for older, newer in pairs))
        except CoordinatorRefusedError as error:
            if error.refusal_code == _LOG_SHORTER:
                raise await self._forked(manifest, signed, finding="log-shorter") from error
            if pairs:
                message = "the coordinator does not prove that its audit log continues what this site saw; upgrade it"
                raise _refused(UNPROVEN, message, manifest, cause=error.refusal_code or error.status) from error
            answer = AuditConsistency(proofs=(), held=None)
        for (older, newer), proof in zip(pairs, answer.proofs, strict=True):
            try:
                verify_consistency(older, newer, proof)
            except AuditProofInvalidError as error:
                raise await self._forked(manifest, signed, finding="proof-invalid") from error
        await asyncio.to_thread(self._known.record_shown, manifest, signed)
        await self._look_at_held(answer.held)

    async def prove_own(self, m1: bytes) -> OwnLogProof | None:
        """The proof that goes beside an M1; None where it is not known what the coordinator holds.

        Raises:
            SiteDatabaseError: the own log cannot be read.
        """
        held = self._held
        heads = KeyAdvertisement.decode(SignedBody.decode(m1).body).heads
        if held is None:
            return None
        older, newer = sorted((held.size, heads.size))
        proof = () if older == newer else await asyncio.to_thread(self._own.prove, older, newer)
        return OwnLogProof(held_size=held.size, proof=proof)

    async def _look_at_held(self, held: TreeHead | None) -> None:
        """What the coordinator holds under this site's name should be in this site's log."""
        self._held = None
        if held is None:
            return
        if await asyncio.to_thread(self._own.holds, held):
            self._held = held
            return
        if self._has_denounced:
            return
        self._has_denounced = True
        own_size = await asyncio.to_thread(self._own.size)
        log.error(
            "own_history_forked",
            held_size=held.size,
            own_size=own_size,
            advice="the coordinator holds a head under this site's name that is not in this site's log: was the state"
            " folder restored, or copied to a second machine?",
        )
        await asyncio.to_thread(self._known.record_own_fork, held=held, own_size=own_size)

    async def _forked(self, manifest: RoundManifest, signed: SignedBody, *, finding: str) -> RoundRefusedError:
        seen = self._known.seen
        if self._forked_from != seen:
            # Once for what was seen, not once a repetition: one signed M0 convicts, and a coordinator must not be able
            # to fill this site's log with more of them.
            await asyncio.to_thread(self._known.record_fork, manifest, signed, finding=finding)
            self._forked_from = seen
        log.error(
            "history_forked",
            finding=finding,
            seen_size=seen.size,
            shown_size=manifest.audit_size,
            advice="the coordinator's audit log is not the one that this site saw. Ask its operator whether an older"
            " copy of the database was put back; a backup is restored with 'wardround-coordinator restore'. Keep both"
            " logs: 'wardround-site audit export', and 'wardround audit verify --with' compares them",
        )
        message = "the coordinator's audit log does not continue what this site saw of it"
        return _refused(FORKED, message, manifest, cause=finding)


def _refused(reason: str, message: str, manifest: RoundManifest, *, cause: str) -> RoundRefusedError:
    return RoundRefusedError(
        message,
        reason=reason,
        run_id=manifest.run_id,
        round_index=manifest.round_index,
        round_attempt=manifest.round_attempt,
        cause=cause,
    )
