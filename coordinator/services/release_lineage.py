"""Where a release comes from: everything that its manifest and its evidence are written from, read in one view."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.db.models import (
    Approval,
    AuditCheckpoint,
    Exchange,
    Participation,
    Release,
    Round,
    Run,
    Site,
    Upload,
)
from coordinator.db.states import ApprovalDecision
from coordinator.rounds.exchange_machine import ExchangeState
from coordinator.rounds.round_machine import RoundState
from coordinator.rounds.run_machine import RunState
from coordinator.services.export_audit import CheckpointView, checkpoint_view
from coordinator.services.refusals import StateConflictError
from coordinator.services.run_specs import run_spec_of
from coordinator.services.show_runs import find_run
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageApproval:
    """A site's statement, and the key that it verifies with."""

    site_id: str
    decision: str
    at: datetime
    statement: SignedBody
    signing_spki: bytes

    @property
    def dataset(self) -> str | None:
        """The dataset that the site approved the run for."""
        return self._said("dataset")

    @property
    def dataset_sha256(self) -> str | None:
        """The dataset's digest, where the site's statement tells it."""
        return self._said("dataset_sha256")

    def _said(self, key: str) -> str | None:
        try:
            document = json.loads(self.statement.body)
        except (ValueError, RecursionError):
            # Statements are read when they come. A row that is none is shown as what it is by whoever verifies.
            return None
        value = document.get(key) if isinstance(document, dict) else None
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageParent:
    """A release from whose adapter the run began."""

    release_id: str
    manifest_sha256: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageRound:
    """A committed round: what the coordinator and the sites signed about it."""

    round_index: int
    round_attempt: int
    kind: str
    manifest: SignedBody
    result: SignedBody
    sum_blob_sha256: str
    transcript_root: str | None
    counted_sites: tuple[str, ...]
    state_sha256_after: str | None
    report: Mapping[str, object]
    acknowledgements: Mapping[str, SignedBody]
    receipts: Mapping[str, SignedBody]

    @property
    def result_sha256(self) -> str:
        """The digest by which the next manifest names this result."""
        return hashlib.sha256(self.result.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A completed run. Invariant: its rounds are all COMMITTED, in order, the evaluation round last."""

    run_id: str
    run_spec_json: bytes
    run_spec_sha256: str
    spec: RunSpec
    layout: AdapterLayout
    public_state_version: int
    public_state_sha256: str
    public_state_blob_sha256: str
    approvals: tuple[LineageApproval, ...]
    rounds: tuple[LineageRound, ...]
    checkpoint: CheckpointView
    parents: tuple[LineageParent, ...] = ()

    @property
    def eval_loss_before(self) -> float | None:
        """The held-out loss of the initial adapter: round 0 evaluates what it received."""
        return _loss(self.rounds[0]) if self.rounds else None

    @property
    def eval_loss_after(self) -> float | None:
        """The held-out loss of the released adapter: the evaluation round's."""
        return next((_loss(one) for one in self.rounds if one.kind == RoundKind.EVALUATE.value), None)


def read_lineage(session: Session, run_id: str) -> Lineage:
    """Read where a run's result comes from; the log must have a checkpoint.

    Raises:
        NotFoundError: there is no such run.
        StateConflictError: the run is not COMPLETED, or the log has no signed head yet.
    """
    run = find_run(session, run_id)
    if run.state != RunState.COMPLETED.value:
        raise StateConflictError("only a completed run is released", run_id=run_id, state=run.state)
    checkpoint = session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1)).first()
    if checkpoint is None:
        raise StateConflictError("the audit log has no signed head yet", run_id=run_id)
    return Lineage(
        run_id=run.run_id,
        run_spec_json=run.run_spec_json,
        run_spec_sha256=run.run_spec_sha256,
        spec=run_spec_of(run.run_spec_json),
        layout=AdapterLayout.from_document(json.loads(run.layout_json)),
        public_state_version=run.public_state_version,
        public_state_sha256=run.public_state_sha256,
        public_state_blob_sha256=run.public_state_blob_sha256,
        approvals=_approvals(session, run),
        rounds=_rounds(session, run_id),
        checkpoint=checkpoint_view(checkpoint),
        parents=_parents(session, run),
    )


def _parents(session: Session, run: Run) -> tuple[LineageParent, ...]:
    # A run that begins from a released adapter names the digest of that adapter as an initial state.
    initial = run_spec_of(run.run_spec_json).adapter.initial_sha256
    query = select(Release).where(Release.continuation_sha256 == initial, Release.run_id != run.run_id)
    return tuple(
        LineageParent(release_id=row.release_id, manifest_sha256=row.manifest_sha256, state=row.state)
        for row in session.scalars(query.order_by(Release.release_id))
    )


def _approvals(session: Session, run: Run) -> tuple[LineageApproval, ...]:
    query = (
        select(Approval, Site)
        .join(Site, Site.site_id == Approval.site_id)
        # One that withdrew meanwhile may have been counted before: its word is evidence too.
        .where(
            Approval.run_id == run.run_id,
            Approval.decision.in_((ApprovalDecision.APPROVED.value, ApprovalDecision.WITHDRAWN.value)),
        )
        .order_by(Approval.site_id)
    )
    return tuple(
        LineageApproval(
            site_id=approval.site_id,
            decision=approval.decision,
            at=approval.at,
            statement=SignedBody(body=approval.statement_body, signature=approval.statement_signature),
            signing_spki=site.signing_spki or b"",
        )
        for approval, site in session.execute(query)
    )


def _rounds(session: Session, run_id: str) -> tuple[LineageRound, ...]:
    query = (
        select(Round)
        .where(Round.run_id == run_id, Round.state == RoundState.COMMITTED.value)
        .order_by(Round.round_index)
    )
    return tuple(_round(session, row) for row in session.scalars(query))


def _round(session: Session, row: Round) -> LineageRound:
    # The round's last exchange: its result is what the next manifest names.
    exchange = session.scalars(
        select(Exchange)
        .where(
            Exchange.run_id == row.run_id,
            Exchange.round_index == row.round_index,
            Exchange.round_attempt == row.round_attempt,
            Exchange.state == ExchangeState.SUMMED.value,
        )
        .order_by(Exchange.exchange_index.desc())
        .limit(1)
    ).one()
    assert exchange.result_body is not None
    assert exchange.result_signature is not None
    counted = tuple(sorted(exchange.u3 or ()))
    return LineageRound(
        round_index=row.round_index,
        round_attempt=row.round_attempt,
        kind=row.kind,
        manifest=SignedBody(body=row.manifest_body, signature=row.manifest_signature),
        result=SignedBody(body=exchange.result_body, signature=exchange.result_signature),
        sum_blob_sha256=exchange.sum_blob_sha256 or "",
        transcript_root=exchange.transcript_root,
        counted_sites=counted,
        state_sha256_after=row.state_sha256_after,
        report=row.report or {},
        acknowledgements=_acknowledgements(session, row),
        receipts=_receipts(session, exchange, counted),
    )


def _acknowledgements(session: Session, row: Round) -> dict[str, SignedBody]:
    query = (
        select(Participation)
        .where(
            Participation.run_id == row.run_id,
            Participation.round_index == row.round_index,
            Participation.round_attempt == row.round_attempt,
        )
        .order_by(Participation.site_id)
    )
    return {
        one.site_id: SignedBody(body=one.acknowledgement_body, signature=one.acknowledgement_signature)
        for one in session.scalars(query)
        if one.acknowledgement_body is not None and one.acknowledgement_signature is not None
    }


def _receipts(session: Session, exchange: Exchange, counted: tuple[str, ...]) -> dict[str, SignedBody]:
    query = select(Upload).where(
        Upload.run_id == exchange.run_id,
        Upload.round_index == exchange.round_index,
        Upload.round_attempt == exchange.round_attempt,
        Upload.exchange_index == exchange.exchange_index,
        Upload.exchange_attempt == exchange.exchange_attempt,
        Upload.site_id.in_(counted),
    )
    return {
        one.site_id: SignedBody(body=one.receipt_body, signature=one.receipt_signature)
        for one in session.scalars(query.order_by(Upload.site_id))
        if one.receipt_body is not None and one.receipt_signature is not None
    }


def _loss(one: LineageRound) -> float | None:
    value = one.report.get("eval_loss")
    return float(value) if isinstance(value, (int, float)) else None
