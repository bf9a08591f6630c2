"""A run as this site approved it: read from its own ledger, every digest checked again. Believes no coordinator."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy.orm import Session

from fl_protocol.errors import ProtocolError
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import Algorithm
from fl_protocol.ids import RunId
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.errors import AdapterLayoutSparseError
from fl_protocol.tensors.layout_rules import check_layout
from site_agent.approvals.run_records import COMPLETED, ENDED, STANDING
from site_agent.approvals.statement import Decision
from site_agent.db.instants import instant_from_text
from site_agent.db.models import RunLedgerRow
from site_agent.errors import RoundRefusedError
from site_agent.policy.evaluate import EXPIRED_APPROVAL

_APPROVED = STANDING | {COMPLETED}
"""A completed run stays approved: its last acknowledgement may have to be said again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedRun:
    """A run that this site's steward or policy approved, and did not take back."""

    run_id: RunId
    run_spec_sha256: str
    spec: RunSpec
    layout: AdapterLayout
    layout_json: bytes
    initial_state_sha256: str

    @property
    def algorithm(self) -> Algorithm:
        """How its sums become the next state."""
        return ALGORITHMS[self.spec.aggregation.algorithm.value]

    def is_last_round(self, round_index: int) -> bool:
        """Whether the run is over once that round is settled: behind the training rounds comes an evaluation."""
        return round_index >= self.spec.rounds

    def payload_layout(self, kind: RoundKind) -> PayloadLayout:
        """The payload of a round of that kind, as this site derives it."""
        return self.algorithm.segments(self.spec, self.layout, kind)


def read_approved_run(session: Session, run_id: RunId) -> ApprovedRun:
    """Read a run that this site approved.

    Raises:
        RoundRefusedError: it did not (``run-not-approved``), or took it back (``run-withdrawn``), or the
            coordinator ended it (``run-ended``), or the ledger's documents do not have the digests that were approved.
    """
    row = session.get(RunLedgerRow, run_id)
    if row is not None and row.state == Decision.WITHDRAWN.value:
        raise RoundRefusedError("this site has withdrawn from the run", reason="run-withdrawn", run_id=run_id)
    if row is not None and row.state == ENDED:
        raise RoundRefusedError("the coordinator has ended the run", reason="run-ended", run_id=run_id)
    if row is None or row.state not in _APPROVED:
        message = "this site has not approved the run"
        raise RoundRefusedError(message, reason="run-not-approved", run_id=run_id)
    if hashlib.sha256(row.run_spec_json).hexdigest() != row.run_spec_sha256:
        raise RoundRefusedError("the ledger's run spec was altered", reason="run-spec-altered", run_id=run_id)
    try:
        spec, layout = _documents_from_bytes(row.run_spec_json, row.layout_json)
    except (ProtocolError, ValueError) as error:
        message = "the ledger's documents cannot be read"
        raise RoundRefusedError(message, reason="run-spec-altered", run_id=run_id) from error
    if layout.digest() != spec.adapter.layout_sha256:
        message = "the adapter's layout is not the one that the run spec names"
        raise RoundRefusedError(message, reason="adapter-layout-mismatch", run_id=run_id)
    try:
        check_layout(layout, spec.adapter)
    except AdapterLayoutSparseError as error:
        # Asked again: an agent of before 0.2 approved a layout by its digest alone.
        raise RoundRefusedError(str(error), reason=error.code, run_id=run_id) from error
    return ApprovedRun(
        run_id=run_id,
        run_spec_sha256=row.run_spec_sha256,
        spec=spec,
        layout=layout,
        layout_json=row.layout_json,
        initial_state_sha256=row.initial_state_sha256,
    )


def check_term(session: Session, run_id: RunId, now: datetime) -> None:
    """Check that the approval, as it was signed, has not ended.

    An approval that an earlier version signed names no end; whether a round may be joined under it the judge says,
    who knows the policy.

    Raises:
        RoundRefusedError: ``approval-expired``.
    """
    row = session.get(RunLedgerRow, run_id)
    if row is not None and row.expires_at is not None and instant_from_text(row.expires_at) <= now:
        raise RoundRefusedError("this site's approval has ended", reason=EXPIRED_APPROVAL, run_id=run_id)


@lru_cache(maxsize=8)
def _documents_from_bytes(run_spec_json: bytes, layout_json: bytes) -> tuple[RunSpec, AdapterLayout]:
    """What the bytes say. A round asks several times; the digests are checked each time, before and after this."""
    return parse_run_spec(json.loads(run_spec_json)), AdapterLayout.from_document(json.loads(layout_json))
