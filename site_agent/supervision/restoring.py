"""After a restart: which rounds can be taken up, from the round book, the job folders and the journal.

A round whose training was cut short is not taken up: the coordinator assigns it again, with the same M0, and nothing of
it was masked. Its folder stays until then, for the checkpoint in it; who restores deletes it when the coordinator has
something else in mind. A round that was READY is taken up if its payload is still there; one in an exchange, if the
journal opens.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from fl_protocol.errors import WardroundError
from fl_protocol.spec.context import ExchangeContext, RoundContext
from site_agent.approvals.run_records import standing_run_ids
from site_agent.errors import RoundRefusedError
from site_agent.session.events import round_of
from site_agent.session.machine import PHASE_AFTER, RoundSession, SessionPhase
from site_agent.state.joined_round import JoinedRound
from site_agent.state.journal import ExchangeRecord
from site_agent.state.public_state import StoredState
from site_agent.supervision.admission import Admission, AdmittedRound
from site_agent.supervision.job_desk import JobDesk
from site_agent.supervision.seams import SiteSeams

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRound:
    """A round to take up. ``complaint`` is the exchange whose complaint may not have been sent."""

    session: RoundSession
    admitted: AdmittedRound
    state: StoredState | None
    complaint: ExchangeContext | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """What an earlier process left: rounds to take up, at most one a run, and rounds whose training was cut short."""

    restored: tuple[RestoredRound, ...]
    cut_short: frozenset[RoundContext]


class Restorer:
    """Finds what an earlier process left. All methods block on the disk: call them in a thread."""

    def __init__(self, seams: SiteSeams, admission: Admission) -> None:
        """Work with these seams."""
        self._seams = seams
        self._admission = admission
        self._jobs = JobDesk(seams.jobs, seams.site_id)

    def restore(self) -> Leftovers:
        """What can be gone on with; everything else that is left over is closed and deleted."""
        restored: dict[str, RestoredRound] = {}
        for joined in self._seams.book.open_rounds():
            found = self._restore_round(joined)
            if found is not None:
                restored[joined.round.run_id] = found
        kept = {found.session.round for found in restored.values()}
        for context in self._seams.journal.open_contexts():
            newest = next((f.session.context for f in restored.values() if f.session.round == round_of(context)), None)
            is_needed = context in (newest, *(f.complaint for f in restored.values()))
            if not is_needed:
                self._seams.journal.close(context)
        cut_short: set[RoundContext] = set()
        for joined in self._seams.book.open_rounds():
            if joined.round in kept:
                continue
            reason = self._why_not_approved(joined)
            if reason is not None:
                # Withdrawn while no agent ran, or in the moment before it was killed: its training is over.
                self._seams.book.record_state(joined.round, SessionPhase.DECLINED.value, outcome=reason)
            elif joined.state != SessionPhase.TRAINING.value:
                self._seams.book.record_state(joined.round, SessionPhase.FAILED.value, outcome="lost-in-restart")
            elif self._jobs.folder(joined.round).exists():
                cut_short.add(joined.round)
        # Safety: what an update lies in does not outlive its round, whichever way the last process ended.
        self._jobs.delete_all_but(kept | cut_short)
        self._jobs.forget_all_but(self._seams.db.run_read("standing-runs", standing_run_ids))
        return Leftovers(restored=tuple(restored.values()), cut_short=frozenset(cut_short))

    def _why_not_approved(self, joined: JoinedRound) -> str | None:
        try:
            self._admission.check_word(joined.round.run_id)
        except RoundRefusedError as error:
            return error.reason
        return None

    def _restore_round(self, joined: JoinedRound) -> RestoredRound | None:
        signed = self._jobs.read_manifest(joined.round)
        if signed is None or joined.state == SessionPhase.TRAINING.value:
            return None
        try:
            admitted = self._admission.recall(joined.round, signed)
            contexts = [c for c in self._seams.journal.open_contexts() if round_of(c) == joined.round]
            record = self._seams.journal.read(contexts[-1]) if contexts else None
        except WardroundError as error:
            log.warning("round_not_restored", run_id=joined.round.run_id, code=error.code)
            return None
        session = self._session(joined.round, record, last_attempt=self._last_attempt(joined, contexts))
        needs_payload = session.phase in {
            SessionPhase.READY,
            SessionPhase.ADVERTISED,
            SessionPhase.SHARED,
        }
        if needs_payload and not self._jobs.has_payload(joined.round):
            return None
        complaint = record.context if record is not None and record.is_complaint else None
        state = self._seams.states.find(joined.round.run_id, admitted.manifest.public_state_version)
        return RestoredRound(session=session, admitted=admitted, state=state, complaint=complaint)

    def _last_attempt(self, joined: JoinedRound, contexts: list[ExchangeContext]) -> int:
        opened = self._seams.book.last_exchange_attempt(joined.round)
        return max([opened, *(context.exchange_attempt for context in contexts)])

    @staticmethod
    def _session(round_context: RoundContext, record: ExchangeRecord | None, *, last_attempt: int) -> RoundSession:
        if record is None or record.is_complaint or record.last_step is None:
            return RoundSession(round=round_context, phase=SessionPhase.READY, last_exchange_attempt=last_attempt)
        return RoundSession(
            round=round_context,
            phase=PHASE_AFTER[record.last_step],
            context=record.context,
            taken=record.taken,
            last_exchange_attempt=last_attempt,
        )
