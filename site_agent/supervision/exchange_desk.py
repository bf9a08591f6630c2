"""One exchange at this site: the role's steps, each in the journal before it leaves, and the sending of what is there.

The order of every step: refuse what was taken before -> the role makes the statement -> the journal has it, on the
disk -> (the machine learns that it was taken) -> the flag and its audit event, on the disk -> it leaves. A crash at any
point leaves either nothing that left, or the bytes that did.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.orm import Session

from fl_protocol.audit.events import AuditKind
from fl_protocol.codec.chunks import CHUNK_BYTES
from fl_protocol.ids import SiteId
from fl_protocol.secagg.messages import AuditHeads, Reveal
from fl_protocol.secagg.reasons import SecAggRefusedError
from fl_protocol.secagg.site_role import SitePhase, SiteRole
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from site_agent.approvals.run_records import is_paused
from site_agent.audit.store import audit_head
from site_agent.errors import JournalDamagedError, OneShotSpentError, RoundRefusedError
from site_agent.link.uploader import Upload
from site_agent.session.events import Step, round_of
from site_agent.state.disk_space import require_space
from site_agent.state.journal import ExchangeRecord
from site_agent.state.payload_memory import MaskedCohort, RevealedExchange
from site_agent.supervision.admission import AdmittedRound
from site_agent.supervision.approved_runs import check_term, read_approved_run
from site_agent.supervision.job_desk import JobDesk, payload_digest
from site_agent.supervision.seams import SiteSeams
from site_agent.supervision.survivors_rules import EarlierSums, check_sites

_NEEDS_THE_STEWARD = frozenset({Step.MASK, Step.REVEAL})
"""What gives something away that cannot be taken back: the masked payload, and the shares that unmask a sum."""


class ExchangeDesk:
    """The exchanges of one admitted round, one at a time."""

    def __init__(self, seams: SiteSeams, admitted: AdmittedRound, desk: JobDesk) -> None:
        """Work for this round."""
        self._seams = seams
        self._admitted = admitted
        self._desk = desk
        self._role: SiteRole | None = None
        self._context: ExchangeContext | None = None
        self._masked_now: ExchangeContext | None = None

    async def take(self, step: Step, context: ExchangeContext, message: bytes, *, input_sha256: str) -> None:
        """Make a statement and bring it to the disk.

        Raises:
            SecAggRefusedError: the role refuses what it was given; after a bad dealer ``has_complaint`` is true.
            OneShotSpentError: the step, or the payload, was spent before.
            RoundRefusedError: the sites are not among those that this site may be summed with; or the steward has
                withdrawn the run or paused the site since.
            JobError, ProtocolError: the payload is lost or cannot be encoded.
            SiteDatabaseError: it could not be recorded, so it does not happen.
        """
        try:
            await asyncio.to_thread(self._take, step, context, message, input_sha256)
        except BaseException:
            # The role in memory may be a step ahead of the disk: what counts is the journal.
            self._role = None
            raise

    def role_of(self, context: ExchangeContext) -> SiteRole | None:
        """A fresh role out of the journal; None where the exchange is not open."""
        record = self._seams.journal.read(context)
        if record is None:
            return None
        return SiteRole.restore(record.snapshot, signer=self._seams.signer, entropy=self._seams.entropy)

    def has_complaint(self, context: ExchangeContext) -> bool:
        """Whether the journal holds a complaint about a dealer of this exchange."""
        record = self._seams.journal.read(context)
        return record is not None and record.is_complaint

    async def send(self, step: Step, context: ExchangeContext) -> None:
        """Set the step's flag, and send its journalled bytes; for the masked input, until there is a receipt.

        Raises:
            RoundRefusedError: the steward has withdrawn the run or paused the site, and the payload or the shares have
                not left yet.
            OneShotSpentError: a flag stands against it.
            JournalDamagedError: the journal does not hold the step's statement.
            LinkError: the network or the coordinator failed.
        """
        record = await asyncio.to_thread(self._recorded, context, step)
        await asyncio.to_thread(self._ensure_flag, step, record)
        if step is Step.MASK:
            await self._upload(context, record.message)
        elif step is Step.ADVERTISE:
            own_log = await self._seams.witness.prove_own(record.message)
            await self._seams.client.send_statement(step, context, message=record.message, own_log=own_log)
        else:
            await self._seams.client.send_statement(step, context, message=record.message)

    async def close(self, context: ExchangeContext) -> None:
        """Delete the exchange's key and files."""
        self.forget_role()
        await asyncio.to_thread(self._seams.journal.close, context)

    def forget_role(self) -> None:
        """Hold no key of an exchange any more; what is asked for again is read from the journal."""
        self._role = None

    def _take(self, step: Step, context: ExchangeContext, message: bytes, input_sha256: str) -> None:
        if self._is_in_journal(step, context, input_sha256):
            # It was made and is on the disk, but what follows on it could not be recorded: the same bytes go on.
            return
        role = self._open(context) if step is Step.ADVERTISE else self._role_for(context)
        if step in _NEEDS_THE_STEWARD:
            self._check_steward(context)
        if step is Step.MASK:
            # The policy may have been narrowed while this site trained; at what hour, no longer matters.
            self._seams.judge.permit(self._admitted.run, is_training_ahead=False)
        match step:
            case Step.ADVERTISE:
                statement = role.advertise()
            case Step.SHARE:
                statement = role.share(message)
            case Step.MASK:
                statement = self._mask(role, context, message)
                self._masked_now = context
            case Step.CONFIRM:
                self._refuse_taken(step, context)
                statement = role.confirm(message)
                # M7 is made by now, but it is neither in the journal nor gone.
                self._check_sites(role.survivors, role, context)
            case Step.REVEAL:
                self._refuse_taken(step, context)
                # Asked again: another run may have revealed the same evaluation since M7.
                self._check_sites(role.survivors, role, context)
                statement = role.reveal(message)
        self._record(role, context, statement, step=step, input_sha256=input_sha256)

    def _is_in_journal(self, step: Step, context: ExchangeContext, input_sha256: str) -> bool:
        record = self._seams.journal.read(context)
        if record is None or record.is_complaint:
            return False
        return (step, input_sha256) in record.taken

    def _open(self, context: ExchangeContext) -> SiteRole:
        seams, admitted = self._seams, self._admitted
        self._refuse_taken(Step.ADVERTISE, context)
        if seams.book.revealed_in(round_of(context)) is not None:
            message = "shares were revealed in this attempt at the round; no other exchange of it is entered"
            raise OneShotSpentError(message, exchange_attempt=context.exchange_attempt)
        if seams.journal.read(context) is not None:
            raise OneShotSpentError("this exchange was entered before", exchange_attempt=context.exchange_attempt)
        own_log = seams.db.run_read("audit-head", audit_head)
        self._role = SiteRole.open(
            site_id=seams.site_id,
            context=context,
            manifest=admitted.signed,
            coordinator_spki=seams.coordinator_spki,
            layout=admitted.layout,
            params=admitted.params,
            peers=admitted.peers,
            signer=seams.signer,
            entropy=seams.entropy,
            heads=AuditHeads(
                size=own_log.size,
                head=bytes.fromhex(own_log.root),
                seen_size=admitted.manifest.audit_size,
                seen_head=bytes.fromhex(admitted.manifest.audit_head),
            ),
        )
        self._context = context
        return self._role

    def _role_for(self, context: ExchangeContext) -> SiteRole:
        if self._role is None or self._context != context:
            self._role = self.role_of(context)
            self._context = context
        if self._role is None:
            raise JournalDamagedError("this site is not in the exchange", exchange_attempt=context.exchange_attempt)
        return self._role

    def _mask(self, role: SiteRole, context: ExchangeContext, m4: bytes) -> bytes:
        seams, evaluation = self._seams, self._admitted.evaluation
        earlier = seams.book.cohorts_of(evaluation, besides=context)
        try:
            role.accept_shares(m4, earlier_cohorts=[cohort.sites for cohort in earlier])
        except SecAggRefusedError as error:
            if role.phase is SitePhase.COMPLAINED and role.last_message is not None:
                self._record_complaint(role, context, role.last_message, error)
            raise
        self._check_sites(role.sharers, role, context)
        # Before anything is remembered: the spool, and the journal's record beside it.
        require_space(seams.jobs.jobs_dir.parent, self._admitted.layout.n_bytes, purpose="masked input")
        vector = self._desk.encode(self._admitted)
        cohort = MaskedCohort(
            context=context,
            sites=frozenset(role.cohort),
            threshold=self._admitted.params.threshold(len(role.cohort)),
        )
        # Safety: before the first word is masked. What is masked may leave, and what left may be summed.
        name = payload_digest(vector, context.run_id)
        seams.book.claim_mask(cohort, payload_sha256=name, evaluation=evaluation)
        n_threads = seams.jobs.threads or 1
        with ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix="mask") as pool:
            upload = role.mask(vector, n_ranges=n_threads, run_all=_in_pool(pool))
        # The leaves behind the vector, so that it is not hashed again when it is sent in chunks of the same length.
        leaves = upload.leaves if self._admitted.params.chunk_bytes == CHUNK_BYTES else ()
        seams.journal.write_spool(context, [*upload.vector.buffers(), *leaves])
        return upload.header

    def _check_sites(self, sites: Collection[SiteId], role: SiteRole, context: ExchangeContext) -> None:
        """The rules about sites that reach over one exchange, asked of what the book remembers now."""
        admitted, book = self._admitted, self._seams.book
        earlier = EarlierSums(
            required_survivors=admitted.required_survivors,
            evaluated_among=book.survivors_of(admitted.evaluation),
            cohorts=book.cohorts_of(admitted.evaluation, besides=context),
        )
        check_sites(sites, earlier, n_cohort=len(role.cohort), params=admitted.params, run_id=context.run_id)

    def _check_steward(self, context: ExchangeContext) -> None:
        """Read again what the steward may have changed since the round was joined.

        Raises:
            RoundRefusedError: ``run-withdrawn``, ``run-not-approved``, ``approval-expired``, ``site-paused``.
        """
        now = self._seams.clock.now()

        def read(session: Session) -> None:
            read_approved_run(session, context.run_id)
            check_term(session, context.run_id, now)
            if is_paused(session):
                raise RoundRefusedError("the steward paused this site", reason="site-paused", run_id=context.run_id)

        self._seams.db.run_read("steward-word", read)

    def _record(
        self, role: SiteRole, context: ExchangeContext, statement: bytes, *, step: Step, input_sha256: str
    ) -> None:
        before = self._seams.journal.read(context)
        taken = () if before is None else before.taken
        self._seams.journal.write(
            ExchangeRecord(
                context=context,
                taken=(*taken, (step, input_sha256)),
                message=statement,
                snapshot=role.snapshot(),
            )
        )

    def _record_complaint(
        self, role: SiteRole, context: ExchangeContext, complaint: bytes, refused: SecAggRefusedError
    ) -> None:
        self._seams.book.record_event(
            AuditKind.EXCHANGE_FAILED,
            round_of(context),
            exchange_attempt=context.exchange_attempt,
            reason=refused.reason.value,
            dealer=refused.blamed,
        )
        before = self._seams.journal.read(context)
        taken = () if before is None else before.taken
        self._seams.journal.write(
            ExchangeRecord(context=context, taken=taken, message=complaint, snapshot=role.snapshot(), is_complaint=True)
        )

    def _recorded(self, context: ExchangeContext, step: Step) -> ExchangeRecord:
        record = self._seams.journal.read(context)
        if record is None or record.last_step is not step or record.is_complaint:
            raise JournalDamagedError("the journal does not hold the statement", step=step.value)
        return record

    def _refuse_taken(self, step: Step, context: ExchangeContext) -> None:
        if self._seams.book.is_taken(step, context):
            message = "this step was taken before, and its statement is gone; it is not taken again"
            raise OneShotSpentError(message, step=step.value, exchange_attempt=context.exchange_attempt)

    def _ensure_flag(self, step: Step, record: ExchangeRecord) -> None:
        book, context = self._seams.book, record.context
        match step:
            case Step.ADVERTISE:
                book.ensure_advertised(context)
            case Step.CONFIRM:
                book.ensure_confirmed(context, survivors=self._role_for(context).survivors)
            case Step.MASK:
                # A second M5 could only repeat the first, but a crash may lie between making it and sending it.
                self._check_steward(context)
            case Step.REVEAL:
                if not book.is_taken(step, context):
                    self._check_steward(context)
                said = Reveal.decode(SignedBody.decode(record.message).body)
                book.ensure_revealed(
                    RevealedExchange(context=context, h_survivors=said.h_survivors),
                    survivors=self._role_for(context).survivors,
                    evaluation=self._admitted.evaluation,
                )
            case Step.SHARE:
                # A second M3 could only repeat the first: the journal holds its bytes, and the role is past it.
                pass

    async def _upload(self, context: ExchangeContext, header: bytes) -> None:
        seams = self._seams
        path = await asyncio.to_thread(seams.journal.spool_path, context)
        n_bytes = self._admitted.layout.n_bytes
        is_new, self._masked_now = self._masked_now == context, None
        receipt = await seams.uploader.upload(
            Upload(context=context, site_id=seams.site_id, header=header, path=path, n_bytes=n_bytes, is_new=is_new)
        )
        await asyncio.to_thread(
            seams.book.record_event,
            AuditKind.PAYLOAD_SENT,
            round_of(context),
            exchange_attempt=context.exchange_attempt,
            header_sha256=hashlib.sha256(header).hexdigest(),
            n_bytes=n_bytes,
            # The coordinator's own signature: should it leave this site out of the sum, this log proves it.
            receipt=receipt.encode().hex(),
        )


def _in_pool(pool: ThreadPoolExecutor) -> Callable[[Sequence[Callable[[], None]]], None]:
    def run_all(work: Sequence[Callable[[], None]]) -> None:
        for done in [pool.submit(piece) for piece in work]:
            done.result()

    return run_all
