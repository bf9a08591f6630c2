"""One round's training, from the room that it needs to the event by which the session learns how it ended.

Runs beside the instructions, and sends nothing but progress. That it began, ended or failed is recorded before anything
follows from it.
"""

from __future__ import annotations

import asyncio
import traceback
from itertools import islice

import structlog

from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import WardroundError
from fl_protocol.folds.control_variate import has_control
from fl_protocol.telemetry import site_metrics as metrics
from site_agent.db.errors import SiteDatabaseError
from site_agent.errors import JobError, JobFailedError
from site_agent.jobs.failure_codes import UNFORESEEN_CODE, code_to_tell
from site_agent.jobs.job_dir import JobSpec
from site_agent.jobs.lives import telling_ends
from site_agent.session import events as on
from site_agent.session.events import SessionEvent
from site_agent.state.disk_space import require_space
from site_agent.state.public_state import StoredState
from site_agent.supervision.admission import AdmittedRound
from site_agent.supervision.job_desk import JobDesk
from site_agent.supervision.progress import ProgressRelay, most_steps
from site_agent.supervision.round_spans import training_span
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.status_board import TrainingFailure

log = structlog.get_logger(__name__)

RECORD_AGAIN_S = 1.0
"""After so long it is tried again to record what could not be recorded."""
_MOST_FACTS = 8
"""Of a failure's are shown: a trainer may write any number of them."""


class RoundTraining:
    """Trains an admitted round from the public state that it starts from."""

    def __init__(self, seams: SiteSeams, jobs: JobDesk) -> None:
        """Work with these seams, in the folders of this desk."""
        self._seams = seams
        self._jobs = jobs

    async def run(self, admitted: AdmittedRound, state: StoredState) -> SessionEvent:
        """Train; how it ended. A cancelled task has stopped the trainer, and tells nobody an end."""
        began_s, ended = asyncio.get_running_loop().time(), "stopped"
        try:
            with training_span(self._seams, admitted.round) as span:
                event = await self._train(admitted, state)
                ended = "done" if isinstance(event, on.JobSucceeded) else "failed"
                span.set("outcome", ended)
        finally:
            self._seams.meter.observe(metrics.JOB_SECONDS, asyncio.get_running_loop().time() - began_s, ended)
        return event

    async def _train(self, admitted: AdmittedRound, state: StoredState) -> SessionEvent:
        relay = ProgressRelay(self._seams, admitted.round, most_steps=most_steps(admitted.run.spec))
        sender = self._seams.spawn(relay.run())
        try:
            await asyncio.to_thread(self._require_space, admitted, state)
            job = await asyncio.to_thread(self._prepare_job, admitted, state)
            await self._record(AuditKind.TRAINING_STARTED, admitted, job_kind=job.kind.value)
            folder = self._jobs.folder(admitted.round)
            with telling_ends(lambda end: self._seams.meter.count(metrics.TRAINER_DEATHS, end.how)):
                await self._seams.runner.run_training_job(folder, job, on_progress=relay.note)
            relay.end_stage()
            await asyncio.to_thread(self._jobs.prove, admitted)
            await self._record(AuditKind.TRAINING_FINISHED, admitted)
        except JobFailedError as error:
            # Safety: the word is the trainer's, and both the coordinator and whoever is shown the audit log read it.
            return await self._failed(admitted, error, code=code_to_tell(error.failure_code))
        except WardroundError as error:
            return await self._failed(admitted, error, code=error.code)
        except Exception as error:  # noqa: BLE001 - what a trainer brings about may be anything, and ends the round aloud
            return await self._failed(admitted, _unforeseen(error), code=UNFORESEEN_CODE)
        finally:
            relay.end_stage()
            sender.cancel()
        self._seams.board.trained(None)
        return on.JobSucceeded()

    def _require_space(self, admitted: AdmittedRound, state: StoredState) -> None:
        """Room for what this round writes: the trainer's copy of the state, its payload, the spool, the next state."""
        n_state = state.path.stat().st_size
        n_bytes = 2 * n_state + 2 * admitted.layout.n_bytes
        if has_control(admitted.run.spec):
            # What the local rule kept, what it leaves, and the offer of it: a vector each.
            n_bytes += 3 * 4 * admitted.run.layout.n_parameters
        require_space(self._seams.jobs.jobs_dir, n_bytes, purpose="training")

    def _prepare_job(self, admitted: AdmittedRound, state: StoredState) -> JobSpec:
        # Its bytes were found to have its digest when it was loaded; it is in memory since it was folded.
        return self._jobs.prepare(admitted, self._seams.states.load(state))

    async def _failed(self, admitted: AdmittedRound, error: WardroundError, *, code: str) -> SessionEvent:
        self._seams.board.trained(_shown(admitted, error, code=code))
        log.error("training_failed", run_id=admitted.round.run_id, code=code, cause=str(error))
        await self._record(AuditKind.TRAINING_FAILED, admitted, code=code)
        return on.JobFailed(code=code)

    async def _record(self, kind: AuditKind, admitted: AdmittedRound, **facts: str | int | bool | None) -> None:
        """No record, no action: what follows on it waits for as long as it cannot be recorded."""
        while True:
            try:
                await asyncio.to_thread(self._seams.book.record_event, kind, admitted.round, **facts)
            except SiteDatabaseError:
                log.warning("record_waits_for_room", run_id=admitted.round.run_id, kind=kind.value)
                await asyncio.sleep(RECORD_AGAIN_S)
            else:
                return


def _shown(admitted: AdmittedRound, error: WardroundError, *, code: str) -> TrainingFailure:
    """For this site's own people, who may know where in their data something is wrong.

    Safety: the name of a dataset's own file stands in the register and nowhere else; here the dataset's name says it.
    """
    advice, facts = "", error.facts
    if isinstance(error, JobFailedError):
        code, advice, facts = error.failure_code, error.advice, error.found
    facts = {key: value for key, value in facts.items() if value != admitted.dataset.path.name}
    return TrainingFailure(
        run_id=admitted.round.run_id,
        round_index=admitted.round.round_index,
        code=code,
        message=error.message,
        advice=advice,
        facts={"dataset": admitted.dataset.name, **dict(islice(facts.items(), _MOST_FACTS))},
    )


def _unforeseen(error: Exception) -> JobError:
    """What is logged of an error without a code: type and place. Safety: its text may quote what a trainer wrote."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = "following the job broke in a way that nobody foresaw"
    return JobError(message, type=type(error).__name__, at=f"{place.filename}:{place.lineno}")
