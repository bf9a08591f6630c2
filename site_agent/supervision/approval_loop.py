"""Sees runs that wait for this site's word, gives the policy's own yes where it may, and sends what was decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog
from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId, sha256_hex_from_text
from site_agent.approvals.approve_run import Judgement, approve_automatically
from site_agent.approvals.errors import RunDocumentInvalidError
from site_agent.approvals.ledger import site_ledger_for
from site_agent.approvals.run_records import (
    PENDING,
    RunInHand,
    RunRecord,
    end_run,
    has_run_in_hand,
    list_runs,
    mark_statement_sent,
    record_pending_run,
    runs_in_hand,
    unsent_statements,
)
from site_agent.approvals.statement import Decision
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError, LinkError
from site_agent.link.client import RunSummary
from site_agent.policy.evaluate import Allowed
from site_agent.policy.reading import PolicyFaultsError
from site_agent.policy_file import PolicyVersion
from site_agent.state.kept_features import forget_features
from site_agent.state.private_states import PrivateStates
from site_agent.supervision.policy_desk import PolicyDesk
from site_agent.supervision.seams import SiteSeams

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 1.0
"""A look at this site's own database: it costs no network, and the steward who has decided waits for nothing longer."""
_ASK_SOON_S = 1.0
"""The coordinator is asked this often while no run is in hand, so that a first run is seen at once by who waits for it,
and while a statement is unsent."""
_ASK_SELDOM_S = 3.0
"""Otherwise: a run waits for the steward or is under way, another may be seen a little later, and a call a second for
every site and every hour of training is a cost for nothing."""

_ASK_FOR_ENDS_S = 30.0
"""How often it is asked whether a run in hand was ended: nothing else tells a site that waits for its next round."""

_ENDS = {"CANCELLED": "cancelled", "FAILED": "failed"}
"""States that a run does not leave, and what this site calls them."""

_MOST_INVALID = 100
"""A coordinator that shows false runs without end does not fill this site's log."""


class ApprovalLoop:
    """One look a second, not always at the coordinator. The steward decides in another process, over the database."""

    def __init__(
        self, seams: SiteSeams, *, policies: PolicyDesk, identity: SiteIdentity, peers: Callable[[], Mapping[str, str]]
    ) -> None:
        """Take what runs are judged by."""
        self._seams = seams
        self._policies = policies
        self._identity = identity
        self._peers = peers
        self._judged: dict[str, object] = {}
        self._seen: set[str] = set()
        self._invalid: set[tuple[RunId, str]] = set()
        self._looks_to_wait = 0
        self._looks_to_next_end = 0
        self._ended: set[RunId] = set()
        self._turns = (
            ("see", self._see_in_turn),
            ("end", self._end_in_turn),
            ("judge", self._judge),
            ("send", self._send_decided),
        )
        self._policy_fault = ""

    async def read_policy(self) -> None:
        """Read the policy once, so that the version which an agent starts under is in the log first."""
        await asyncio.to_thread(self._policy)

    def _policy(self) -> PolicyVersion | None:
        try:
            version = self._policies.load()
        except PolicyFaultsError as error:
            # It is in the audit log, and nothing is judged until it is mended; once in this log is enough.
            if str(error) != self._policy_fault:
                self._policy_fault = str(error)
                log.warning("policy_unreadable", cause=str(error))
            return None
        self._policy_fault = ""
        return version

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            for name, turn in self._turns:
                try:
                    await turn()
                except LinkError as error:
                    log.debug("approvals_wait", turn=name, code=error.code)
                except WardroundError as error:
                    log.warning("approvals_failed", turn=name, code=error.code, cause=str(error))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _see_in_turn(self) -> None:
        """Ask the coordinator for runs, when it is time to."""
        if self._looks_to_wait > 0:
            self._looks_to_wait -= 1
            return
        await self._see_pending()
        wait_s = await asyncio.to_thread(self._seams.db.run_read, "approvals-wait", _wait_before_asking_s)
        self._looks_to_wait = round(wait_s / _LOOK_EVERY_S) - 1

    async def _see_pending(self) -> None:
        failed: WardroundError | None = None
        for summary in await self._seams.client.list_pending():
            if summary.run_id in self._seen:
                continue
            try:
                await self._see(summary)
            except CoordinatorUnavailableError:
                raise
            except WardroundError as error:
                # A run that cannot be read (a newer version's, say) keeps no other from being seen.
                failed = failed or error
            else:
                self._seen.add(summary.run_id)
        if failed is not None:
            raise failed

    async def _see(self, summary: RunSummary) -> None:
        seams = self._seams
        documents = await seams.client.get_run(summary.run_id)
        run = RunInHand(
            run_id=summary.run_id,
            name=summary.name,
            run_spec_sha256=sha256_hex_from_text(documents.summary.run_spec_sha256),
            run_spec_json=documents.run_spec_json,
            layout_json=documents.layout_json,
            initial_state_sha256=documents.initial_state_sha256,
        )
        try:
            is_new = await asyncio.to_thread(record_pending_run, seams.db, seams.audit, run, now=seams.clock.now())
        except RunDocumentInvalidError as error:
            await asyncio.to_thread(self._record_invalid, run.run_id, error)
            raise
        if is_new:
            log.info("run_seen", run_id=run.run_id, run_spec_sha256=run.run_spec_sha256)

    async def _end_in_turn(self) -> None:
        """Ask the coordinator, when it is time to, which of the runs in hand it has ended."""
        if self._looks_to_next_end > 0:
            self._looks_to_next_end -= 1
            return
        self._looks_to_next_end = round(_ASK_FOR_ENDS_S / _LOOK_EVERY_S) - 1
        # Once more: the round that was under way may have left something while it was being stopped.
        for run_id in tuple(self._ended):
            await self._forget(run_id)
            self._ended.discard(run_id)
        for record in await asyncio.to_thread(self._seams.db.run_read, "runs-in-hand", runs_in_hand):
            try:
                found = await self._seams.client.get_run(record.run.run_id)
            except CoordinatorRefusedError as error:
                # One that it does not know (any more) is no run that it has ended.
                log.debug("run_not_shown", run_id=record.run.run_id, code=error.refusal_code)
                continue
            if (reason := _how_ended(record, found.summary.state)) is not None:
                await self._end(record.run.run_id, reason=reason)

    async def _end(self, run_id: RunId, *, reason: str) -> None:
        seams = self._seams
        if await asyncio.to_thread(end_run, seams.db, seams.audit, run_id, reason=reason):
            log.info("run_ended", run_id=run_id, reason=reason)
            self._ended.add(run_id)
        # After the record: what is left by whoever dies in between is found by the next start.
        await self._forget(run_id)

    async def _forget(self, run_id: RunId) -> None:
        """Delete what this site keeps of a run beside its records."""
        await asyncio.to_thread(PrivateStates(self._seams.jobs.private_states_dir).forget, run_id)
        await asyncio.to_thread(forget_features, self._seams.jobs.jobs_dir, run_id)

    async def _judge(self) -> None:
        """Ask the policy about every pending run, once for each state of the policy file and of the register."""
        await asyncio.to_thread(self._judge_in_thread)

    def _judge_in_thread(self) -> None:
        seams = self._seams
        # Also where nothing waits: a version that was put in place is in the log before anything rests on it.
        version = self._policy()
        if version is None:
            return
        pending = seams.db.run_read("pending-runs", lambda session: list_runs(session, state=PENDING))
        for record in pending:
            run = record.run
            try:
                ledger = seams.db.run_read(
                    "site-ledger",
                    lambda session, run=run: site_ledger_for(  # type: ignore[misc]  # bound now, called now
                        session,
                        run_spec=run.run_spec(),
                        layout_json=run.layout_json,
                        identity=self._identity,
                        peers=self._peers(),
                        now=seams.clock.now(),
                    ),
                )
            except RunDocumentInvalidError as error:
                self._record_invalid(run.run_id, error)
                log.warning("run_document_invalid", run_id=run.run_id, code=error.code, cause=str(error))
                continue
            judgement = Judgement(policy=version.policy, ledger=ledger, policy_sha256=version.sha256)
            if self._judged.get(run.run_id) == judgement:
                continue
            self._judged[run.run_id] = judgement
            verdict = approve_automatically(
                seams.db,
                seams.audit,
                signer=seams.signer,
                run_id=run.run_id,
                judgement=judgement,
                now=seams.clock.now(),
            )
            log.info("run_judged", run_id=run.run_id, is_approved=isinstance(verdict, Allowed))

    def _record_invalid(self, run_id: RunId, error: RunDocumentInvalidError) -> None:
        """Record once a process that what the coordinator showed of a run is not what it may be."""
        if (run_id, error.code) in self._invalid or len(self._invalid) >= _MOST_INVALID:
            return
        seams = self._seams
        seams.db.run_tx(
            "record-invalid-run",
            lambda session: seams.audit.append(
                session, AuditKind.CALL_REFUSED, "agent", run_id=run_id, instruction="GetRun", code=error.code
            ),
        )
        self._invalid.add((run_id, error.code))

    async def _send_decided(self) -> None:
        seams = self._seams
        for unsent in await asyncio.to_thread(seams.db.run_read, "unsent-statements", unsent_statements):
            try:
                if unsent.decision is Decision.WITHDRAWN:
                    # First what this site keeps of the run: it may be told late, and is not worked on again.
                    await self._forget(unsent.run_id)
                    await seams.client.withdraw(unsent.run_id, statement=unsent.statement)
                else:
                    await seams.client.submit_approval(unsent.run_id, statement=unsent.statement)
            except CoordinatorRefusedError as error:
                # It has this site's word already, or has no use for it any more; asking every second would not help.
                log.warning("statement_refused", run_id=unsent.run_id, code=error.refusal_code, status=error.status)
                if error.status == "RESOURCE_EXHAUSTED":
                    continue
            await asyncio.to_thread(
                mark_statement_sent, seams.db, approval_id=unsent.approval_id, now=seams.clock.now()
            )


def _how_ended(record: RunRecord, state: str) -> str | None:
    """How the coordinator says that a run ended; None where it goes on, or this site's last round tells it."""
    if record.state == PENDING and state == "COMPLETED":
        return "completed-without-this-site"
    return _ENDS.get(state)


def _wait_before_asking_s(session: Session) -> float:
    if unsent_statements(session) or not has_run_in_hand(session):
        return _ASK_SOON_S
    return _ASK_SELDOM_S
