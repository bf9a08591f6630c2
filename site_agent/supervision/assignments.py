"""The poll loop: asks what to do, gives it to the worker of that run, and waits longer when something fails."""

from __future__ import annotations

import asyncio
from typing import assert_never

import structlog

from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import WardroundError
from fl_protocol.ids import RunId
from fl_protocol.spec.context import RoundContext
from site_agent.errors import (
    AnswerInvalidError,
    BlobInvalidError,
    CoordinatorUnavailableError,
    IllegalTransitionError,
    ReceiptInvalidError,
    RoundRefusedError,
    StateError,
)
from site_agent.link import instructions as asked
from site_agent.link.backoff import Backoff
from site_agent.link.instructions import Instruction
from site_agent.session.events import round_of
from site_agent.supervision.admission import Admission
from site_agent.supervision.job_desk import JobDesk
from site_agent.supervision.restoring import Restorer
from site_agent.supervision.round_worker import RoundWorker
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.settlement import Settler

log = structlog.get_logger(__name__)

_POLL_WAIT_S = 20.0
_LONGEST_IDLE_S = 30.0
_SHORTEST_IDLE_S = 0.05
_LONGEST_REFUSAL_S = 3.0
_WATCH_EVERY_S = 0.5
"""How soon a word that was taken back stops a trainer: a look at this site's own database."""

_RECORDED = (
    IllegalTransitionError,
    RoundRefusedError,
    StateError,
    # What no line does to a message: the coordinator said it.
    AnswerInvalidError,
    BlobInvalidError,
    ReceiptInvalidError,
)
_MOST_REFUSALS = 1000
"""How many different refusals a process records; a coordinator must not be able to fill this site's log."""


class AssignmentLoop:
    """One worker a run, fed one instruction at a time."""

    def __init__(self, seams: SiteSeams, *, backoff: Backoff) -> None:
        """Start with no worker; ``restore`` takes up what an earlier process left."""
        self._seams = seams
        self._backoff = backoff
        self._settler = Settler(seams)
        self._jobs = JobDesk(seams.jobs, seams.site_id)
        self._admission = Admission(seams, self._settler)
        self._workers: dict[RunId, RoundWorker] = {}
        self._refused: set[tuple[object, ...]] = set()
        self._cut_short: frozenset[RoundContext] = frozenset()
        self._ending: set[RunId] = set()

    async def restore(self) -> None:
        """Take up open rounds. Call once, before the first poll."""
        restorer = Restorer(self._seams, self._admission)
        left = await asyncio.to_thread(restorer.restore)
        self._cut_short = left.cut_short
        for restored in left.restored:
            log.info("round_restored", run_id=restored.session.round.run_id, phase=restored.session.phase.value)
            self._worker(restored.session.round.run_id).restore(restored)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            wait_s = await self._turn()
            await asyncio.sleep(wait_s)

    async def watch(self) -> None:
        """Look until cancelled whether this site still stands by the runs that it works on."""
        while True:
            await self.look_for_withdrawals()
            await asyncio.sleep(_WATCH_EVERY_S)

    async def look_for_withdrawals(self) -> None:
        """Look once; what has to end is ended by tasks of its own."""
        for run_id, worker in tuple(self._workers.items()):
            if worker.may_withdraw and run_id not in self._ending:
                await self._look_at(run_id, worker)

    async def _look_at(self, run_id: RunId, worker: RoundWorker) -> None:
        try:
            await asyncio.to_thread(self._admission.check_word, run_id)
        except RoundRefusedError as error:
            # In a task of its own: one coordinator's silence does not keep another run's trainer alive.
            self._ending.add(run_id)
            self._seams.spawn(self._end(run_id, worker, reason=error.reason))

    async def _end(self, run_id: RunId, worker: RoundWorker, *, reason: str) -> None:
        try:
            await worker.end_approval(reason)
            log.info("approval_ended", run_id=run_id, reason=reason)
        except WardroundError as error:
            log.warning("approval_end_waits", run_id=run_id, code=error.code)
        finally:
            self._ending.discard(run_id)

    async def stop(self) -> None:
        """Stop the trainers' jobs."""
        for worker in self._workers.values():
            await worker.stop()

    async def _turn(self) -> float:
        """One question and what follows from the answer; how long to wait before the next."""
        seams = self._seams
        instruction: Instruction | None = None
        try:
            for worker in tuple(self._workers.values()):
                await worker.announce()
            holding = [held for worker in self._workers.values() if (held := worker.holding) is not None]
            instruction = await seams.client.poll_assignment(holding=holding, wait_s=_POLL_WAIT_S)
            seams.board.connected(is_connected=True)
            await self._drop_cut_short(instruction)
            if isinstance(instruction, asked.Idle):
                self._backoff.reset()
                return min(max(instruction.retry_after_s, _SHORTEST_IDLE_S), _LONGEST_IDLE_S)
            await self._worker(_round_of(instruction).run_id).follow(instruction)
        except CoordinatorUnavailableError as error:
            seams.board.connected(is_connected=False, problem=error.code)
            log.warning("coordinator_unavailable", cause=str(error))
        except WardroundError as error:
            # The step did not happen. The instruction comes again, and may be right then.
            problem = error.reason if isinstance(error, RoundRefusedError) else error.code
            seams.board.connected(is_connected=instruction is not None, problem=problem)
            log.warning(
                "instruction_not_followed", instruction=type(instruction).__name__, code=error.code, cause=str(error)
            )
            await self._record_refusal(instruction, error)
            # Soon: a phase of an exchange lasts seconds, and the next instruction may be one that can be followed.
            return min(self._backoff.next_wait_s(), _LONGEST_REFUSAL_S)
        else:
            self._backoff.reset()
            return 0.0
        return self._backoff.next_wait_s()

    async def _drop_cut_short(self, instruction: Instruction) -> None:
        """Delete the folders of training that was cut short by a restart and that nobody asks for.

        The coordinator assigns such a round again before it says that there is nothing to do, or asks for another round
        of the run. Safety: the checkpoint in the folder is this site's plain update, and does not outlive its round.
        """
        if not self._cut_short:
            return
        asked_for = None if isinstance(instruction, asked.Idle) else _round_of(instruction)
        held = {worker.holding for worker in self._workers.values()} | {asked_for}
        over = {cut for cut in self._cut_short if asked_for is None or cut.run_id == asked_for.run_id} - held
        for cut in over:
            await asyncio.to_thread(self._jobs.delete, cut)
        # What is held again is the worker's to delete.
        self._cut_short -= over | (held - {asked_for})

    async def _record_refusal(self, instruction: Instruction | None, error: WardroundError) -> None:
        if instruction is None or isinstance(instruction, asked.Idle):
            return
        if not isinstance(error, _RECORDED):
            return
        code = error.reason if isinstance(error, RoundRefusedError) else error.code
        refused = (type(instruction), _round_of(instruction), code)
        # Once, not once a repetition, and not once a turn where two lies take turns.
        if refused not in self._refused and len(self._refused) < _MOST_REFUSALS:
            self._refused.add(refused)
            await asyncio.to_thread(
                self._seams.book.record_event,
                AuditKind.CALL_REFUSED,
                _round_of(instruction),
                instruction=type(instruction).__name__,
                code=code,
            )

    def _worker(self, run_id: RunId) -> RoundWorker:
        if run_id not in self._workers:
            self._workers[run_id] = RoundWorker(run_id, self._seams, admission=self._admission, settler=self._settler)
        return self._workers[run_id]


def _round_of(instruction: Instruction) -> RoundContext:
    match instruction:
        case asked.TrainRound() | asked.AbandonRound():
            return instruction.round
        case (
            asked.OpenExchange()
            | asked.RelayKeys()
            | asked.RelayShares()
            | asked.RelaySurvivors()
            | asked.RelayConfirmations()
            | asked.PublishedResult()
        ):
            return round_of(instruction.exchange)
        case asked.Idle():
            message = "an idle answer belongs to no round"
            raise AssertionError(message)
        case _:
            assert_never(instruction)
