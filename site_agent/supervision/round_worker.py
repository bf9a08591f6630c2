"""Performs the commands of one run's sessions. One instruction at a time; the trainer runs beside it.

What the machine decides is done here in its order; what cannot be done because the network failed is done again when
the instruction comes again. A statement is never made twice, and a session that this process forgot is taken up again
from the round book, the job folder and the journal.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from typing import assert_never

import structlog

from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import RunId
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.telemetry import site_metrics as metrics
from site_agent.db.errors import SiteDatabaseError
from site_agent.errors import (
    IllegalTransitionError,
    JobError,
    JobFailedError,
    RoundRefusedError,
    SiteDiskFullError,
    StateError,
)
from site_agent.jobs.documents import JobDirectoryError
from site_agent.jobs.failure_codes import code_to_tell
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction, PublishedResult
from site_agent.session import commands as do
from site_agent.session import events as on
from site_agent.session.commands import SessionCommand
from site_agent.session.events import DeclineKind, SessionEvent, Step, round_of
from site_agent.session.machine import RECORDED, TABLE, RoundSession, SessionPhase, open_session, step
from site_agent.state.public_state import StoredState
from site_agent.supervision.admission import Admission, AdmittedRound
from site_agent.supervision.exchange_desk import ExchangeDesk
from site_agent.supervision.job_desk import JobDesk
from site_agent.supervision.restoring import RestoredRound
from site_agent.supervision.round_spans import step_span
from site_agent.supervision.round_training import RECORD_AGAIN_S, RoundTraining
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.settlement import Settler
from site_agent.supervision.site_words import SiteWords

log = structlog.get_logger(__name__)

_Relay = asked.RelayKeys | asked.RelayShares | asked.RelaySurvivors | asked.RelayConfirmations

_EVENTS: Mapping[type[_Relay], Callable[..., on.RelayedInput]] = {
    asked.RelayKeys: on.KeysRelayed,
    asked.RelayShares: on.SharesRelayed,
    asked.RelaySurvivors: on.SurvivorsRelayed,
    asked.RelayConfirmations: on.ConfirmationsRelayed,
}


class RoundWorker:
    """The rounds of one run at this site."""

    def __init__(self, run_id: RunId, seams: SiteSeams, *, admission: Admission, settler: Settler) -> None:
        """Hold no round yet."""
        self._run_id = run_id
        self._seams = seams
        self._admission = admission
        self._settler = settler
        self._jobs = JobDesk(seams.jobs, seams.site_id)
        self._training = RoundTraining(seams, self._jobs)
        self._words = SiteWords(seams.client, seams.journal)
        self._lock = asyncio.Lock()
        self._session: RoundSession | None = None
        self._signed: SignedBody | None = None
        self._admitted: AdmittedRound | None = None
        self._state: StoredState | None = None
        self._exchange: ExchangeDesk | None = None
        self._message = b""
        self._published: PublishedResult | None = None
        self._job: asyncio.Task[None] | None = None

    @property
    def holding(self) -> RoundContext | None:
        """The round that this site works on."""
        return None if self._session is None or self._session.is_over else self._session.round

    @property
    def may_withdraw(self) -> bool:
        """Whether this site works on a round and can still leave it: it has not revealed shares."""
        return self._session is not None and (self._session.phase, on.ApprovalEnded) in TABLE

    def restore(self, restored: RestoredRound) -> None:
        """Take up a round that an earlier process left."""
        self._session = restored.session
        self._signed = restored.admitted.signed
        self._take_up(restored.admitted)
        self._state = restored.state
        if restored.complaint is not None:
            self._words.keep(do.SendComplaint(context=restored.complaint), restored.session.round)
        if restored.session.phase is SessionPhase.READY:
            # Said again after a restart: the coordinator may not have heard it.
            self._words.keep(do.ReportReady(), restored.session.round)
        self._seams.board.at_round(restored.session.round, restored.session.phase.value)

    async def announce(self) -> None:
        """Say again what did not get through."""
        async with self._lock:
            await self._words.say_kept()

    async def follow(self, instruction: Instruction) -> None:
        """Do what the coordinator asks, if it may be done.

        Raises:
            IllegalTransitionError, RoundRefusedError, StateError: it may not; nothing left this site.
            LinkError: the network or the coordinator failed; the instruction will come again.
            SiteDatabaseError: it could not be recorded, so it was not done.
        """
        async with self._lock:
            match instruction:
                case asked.Idle():
                    return
                case asked.TrainRound():
                    await self._assigned(instruction.round, instruction.manifest)
                case asked.AbandonRound():
                    if self.holding == instruction.round:
                        await self._advance(on.RoundAbandoned(reason=instruction.reason))
                case asked.PublishedResult():
                    await self._result_published(instruction)
                case asked.OpenExchange():
                    await self._asked_in_exchange(on.ExchangeOpened(context=instruction.exchange), b"")
                case asked.RelayKeys() | asked.RelayShares() | asked.RelaySurvivors() | asked.RelayConfirmations():
                    digest = hashlib.sha256(instruction.message).hexdigest()
                    event = _EVENTS[type(instruction)](context=instruction.exchange, input_sha256=digest)
                    await self._asked_in_exchange(event, instruction.message)
                case _:
                    assert_never(instruction)

    async def end_approval(self, reason: str) -> None:
        """This site's word on the run is gone: kill its trainer, and decline the round if nothing was revealed in it.

        Raises:
            LinkError, SiteDatabaseError: as ``follow``; what was not done is done at the next look.
        """
        # Before the lock, which an instruction may hold for as long as the network takes.
        await self.stop()
        await asyncio.to_thread(self._jobs.forget, self._run_id)
        async with self._lock:
            if self.may_withdraw:
                await self._advance(on.ApprovalEnded(reason=reason))

    async def stop(self) -> None:
        """Stop the trainer's job of this run. The round is not over: a restart takes it up."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    async def _assigned(self, round_context: RoundContext, manifest: SignedBody) -> None:
        session = self._session
        if session is not None and self.holding == round_context:
            if manifest != self._signed:
                message = "the manifest of a round that this site works on was changed"
                raise RoundRefusedError(message, reason="manifest-changed", run_id=self._run_id)
            await self._seams.client.accept_round(round_context)
            if session.phase is SessionPhase.TRAINING and self._job is None:
                await self._perform_one(do.StartJob())
            return
        if session is not None and not session.is_over:
            await self._advance(on.RoundAbandoned(reason="superseded"))
        self._signed, self._admitted, self._state, self._exchange = manifest, None, None, None
        self._session, commands = open_session(round_context)
        try:
            await self._perform(commands)
        except BaseException:
            # Before M0 is checked and recorded there is nothing to hold: the assignment comes again.
            if not self._has_joined():
                self._session = None
            raise

    def _has_joined(self) -> bool:
        """Whether M0 was checked and the round is recorded as joined."""
        session = self._session
        return self._admitted is not None and session is not None and session.phase is not SessionPhase.ASSIGNED

    async def _asked_in_exchange(self, event: on.ExchangeOpened | on.RelayedInput, message: bytes) -> None:
        round_context = round_of(event.context)
        if self.holding != round_context:
            is_opening = isinstance(event, on.ExchangeOpened)
            is_forgotten = self._session is None or self._session.round != round_context
            if self.holding is None and (is_opening or is_forgotten):
                # The coordinator counts on this site, and this site has no payload (any more): say so at once. It may
                # be waiting for this site alone, and would for ever.
                await self._words.say(do.DeclineRound(kind=DeclineKind.FAILED, reason="payload-lost"), round_context)
                if is_opening:
                    return
            raise IllegalTransitionError("this site is not at work on that round", run_id=self._run_id)
        self._message = message
        before = self._session
        try:
            await self._advance(event)
        except (SiteDiskFullError, SiteDatabaseError):
            if isinstance(event, on.ExchangeOpened) and self._session is not None and self._session.context is None:
                # M1 was not made: the exchange has not been entered, and may be when it is opened again.
                self._session = before
            raise

    async def _result_published(self, published: PublishedResult) -> None:
        round_context = round_of(published.exchange)
        if self.holding == round_context and self._admitted is not None:
            self._published = published
            await self._advance(on.ResultPublished(context=published.exchange))
            return
        # Folded before and the acknowledgement was lost, or this site was in U3 and forgot: the chain decides.
        signed, committed = await self._seams.client.get_result(self._run_id, round_context.round_index)
        if committed != published:
            message = "the coordinator shows two results of one round"
            raise RoundRefusedError(message, reason="result-changed", run_id=self._run_id)
        run = await asyncio.to_thread(self._admission.approved, self._run_id)
        await self._settler.reach(run, round_context.round_index)
        after = await self._settler.settle(run, signed, published)
        await self._settler.acknowledge(published, after)
        if run.is_last_round(round_context.round_index):
            await asyncio.to_thread(self._jobs.forget, self._run_id)

    async def _advance(self, event: SessionEvent) -> None:
        if self._session is None:
            raise IllegalTransitionError("this site is not at work on a round", run_id=self._run_id)
        before = self._session
        after, commands = step(before, event)
        if after.phase is not before.phase and after.phase in RECORDED:
            await asyncio.to_thread(self._seams.book.record_state, before.round, after.phase.value)
        self._session = after
        log.info(
            "session_advanced",
            run_id=self._run_id,
            round_index=before.round.round_index,
            round_attempt=before.round.round_attempt,
            event_name=type(event).__name__,
            phase=after.phase.value,
        )
        self._seams.board.at_round(after.round, after.phase.value)
        await self._perform(commands)

    async def _perform(self, commands: tuple[SessionCommand, ...]) -> None:
        try:
            for command in commands:
                follows = await self._perform_one(command)
                if follows is not None:
                    await self._advance(follows)
        except Exception:
            if self._session is not None and self._session.is_over:
                # Safety: what an update lies in does not outlive its round, recorded or not.
                await asyncio.to_thread(self._jobs.delete, self._session.round)
            raise

    async def _perform_one(self, command: SessionCommand) -> SessionEvent | None:  # noqa: C901 - one a command
        if self._session is None:
            raise IllegalTransitionError("this site is not at work on a round", run_id=self._run_id)
        match command:
            case do.CheckRound():
                return await self._check_round(self._session.round)
            case do.StartJob():
                self._job = self._seams.spawn(self._run_job())
            case do.StopJob():
                await self.stop()
            # An acceptance whose answer is lost may have been heard. The round is then held, and assigned no second
            # time: so the trainer is started in any case, and the word is said again.
            case do.AcceptRound() | do.ReportReady() | do.DeclineRound() | do.SendComplaint():
                await self._words.say_or_keep(command, self._session.round)
            case do.TakeStep():
                with step_span(self._seams, command.step, command.context):
                    return await self._take_step(command)
            case do.SendStep():
                with step_span(self._seams, command.step, command.context):
                    return await self._send_step(command)
            case do.CloseExchange():
                await self._close_exchange(command.context)
            case do.SettleResult():
                return await self._settle(command.context)
            case do.CloseRound():
                await self._close_round(command.outcome)
            case _:
                assert_never(command)
        return None

    async def _check_round(self, round_context: RoundContext) -> SessionEvent:
        if self._signed is None:
            raise IllegalTransitionError("this site is not at work on a round", run_id=self._run_id)
        try:
            admitted, self._state = await self._admission.admit(round_context, self._signed)
        except RoundRefusedError as error:
            log.warning("round_refused", run_id=self._run_id, reason=error.reason, cause=str(error))
            self._seams.board.refused(error.reason)
            self._seams.meter.count(metrics.REFUSALS, metrics.refusal_label(error.reason))
            return on.RoundRefused(reason=error.reason)
        self._seams.board.refused(None)
        self._take_up(admitted)
        return on.RoundAdmitted()

    def _take_up(self, admitted: AdmittedRound) -> None:
        self._admitted = admitted
        self._exchange = ExchangeDesk(self._seams, admitted, self._jobs)

    async def _take_step(self, command: do.TakeStep) -> SessionEvent:
        desk = self._desk()
        try:
            await desk.take(command.step, command.context, self._message, input_sha256=command.input_sha256)
        except SecAggRefusedError as error:
            log.warning("step_refused", run_id=self._run_id, step=command.step.value, reason=error.reason.value)
            if await asyncio.to_thread(desk.has_complaint, command.context):
                return on.DealerBlamed(context=command.context)
            return on.StepRefused(context=command.context, reason=error.reason.value)
        except RoundRefusedError as error:
            return on.StepRefused(context=command.context, reason=error.reason)
        except JobFailedError as error:
            return on.JobFailed(code=code_to_tell(error.failure_code))
        except SiteDiskFullError:
            # Nothing was made that is not in the journal. The instruction comes again, and may find room then.
            raise
        except (ProtocolError, StateError, JobError, JobDirectoryError) as error:
            log.warning("step_impossible", run_id=self._run_id, step=command.step.value, code=error.code)
            return on.StepRefused(context=command.context, reason=error.code)
        return on.StepTaken(step=command.step, context=command.context, input_sha256=command.input_sha256)

    async def _send_step(self, command: do.SendStep) -> SessionEvent | None:
        try:
            await self._desk().send(command.step, command.context)
        except RoundRefusedError as error:
            if command.step is Step.REVEAL:
                # M9 was made and stays here. What the sum became may still be settled, should others complete it.
                raise
            return on.StepRefused(context=command.context, reason=error.reason)
        return on.UploadReceipted(context=command.context) if command.step is Step.MASK else None

    async def _settle(self, context: ExchangeContext) -> SessionEvent:
        admitted, published = self._admitted, self._published
        if admitted is None or published is None or self._signed is None:
            raise IllegalTransitionError("there is no result to settle", run_id=self._run_id)
        role = await asyncio.to_thread(self._desk().role_of, context)
        try:
            after = await self._settler.settle(admitted.run, self._signed, published, role=role)
        except RoundRefusedError as error:
            log.warning("result_refused", run_id=self._run_id, reason=error.reason, cause=str(error))
            await asyncio.to_thread(
                self._seams.book.record_event, AuditKind.RESULT_REFUSED, round_of(context), reason=error.reason
            )
            return on.ResultRefused(context=context, reason=error.reason)
        await self._settler.acknowledge(published, after)
        return on.ResultSettled(context=context)

    async def _close_exchange(self, context: ExchangeContext) -> None:
        if self._words.has_unsaid_complaint:
            # The complaint is still to be said, out of the journal, and closes the exchange then.
            self._desk().forget_role()
        else:
            await self._desk().close(context)

    async def _close_round(self, outcome: str) -> None:
        session = self._session
        if session is None:
            return
        await asyncio.to_thread(self._seams.book.record_state, session.round, session.phase.value, outcome=outcome)
        self._seams.meter.count(metrics.ROUNDS, session.phase.value)
        await asyncio.to_thread(self._jobs.delete, session.round)
        if session.phase is SessionPhase.SETTLED and self._is_last_round(session):
            await asyncio.to_thread(self._jobs.forget, self._run_id)
        if session.phase is not SessionPhase.SETTLED or self._is_last_round(session):
            # Nothing follows at once: a trainer that is kept warm for nothing holds a model in memory.
            await self._seams.runner.stop_run(self._jobs.run_folder(session.round))

    def _is_last_round(self, session: RoundSession) -> bool:
        return self._admitted is not None and self._admitted.run.is_last_round(session.round.round_index)

    async def _run_job(self) -> None:
        """Train, then tell the machine. Runs beside the instructions, in a task of its own."""
        admitted, state = self._admitted, self._state
        if admitted is not None and state is not None:
            await self._conclude(admitted.round, await self._training.run(admitted, state))

    async def _conclude(self, round_context: RoundContext, event: SessionEvent) -> None:
        """Tell the machine how the job ended; again while that cannot be recorded."""
        while True:
            async with self._lock:
                self._job, before = None, self._session
                if self.holding != round_context:
                    return
                try:
                    await self._advance(event)
                except SiteDatabaseError:
                    if self._session is not before:
                        raise
                else:
                    return
            log.warning("record_waits_for_room", run_id=self._run_id)
            await asyncio.sleep(RECORD_AGAIN_S)

    def _desk(self) -> ExchangeDesk:
        if self._exchange is None:
            raise IllegalTransitionError("this site is not in an exchange", run_id=self._run_id)
        return self._exchange
