"""A dataset is taken out of use, and with it this site's word on every run that was approved over it.

An approval names a dataset; the run goes on over no other. So a file that was changed, withdrawn and registered again
under the same name is never trained on by a run that was approved before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.ids import RunId
from fl_protocol.signing.keys import Signer
from site_agent.approvals.decisions import Verdict, actor_from_user, decide
from site_agent.approvals.run_records import STANDING
from site_agent.approvals.statement import Decision
from site_agent.audit.store import AuditLog
from site_agent.datasets.registry import RegisteredDataset, withdraw_in
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import SiteDb

DATASET_WITHDRAWN = "dataset-withdrawn"
"""The reason of a run's withdrawal that followed from its dataset's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetWithdrawal:
    """A dataset that is out of use now, and the runs that this site withdrew from with it."""

    dataset: RegisteredDataset
    run_ids: tuple[RunId, ...]


def withdraw_dataset_and_runs(
    db: SiteDb, audit: AuditLog, name: str, *, signer: Signer, local_user: str, now: datetime
) -> DatasetWithdrawal:
    """Withdraw a dataset and every approval over it, in one transaction.

    Raises:
        DatasetUnknownError: no such dataset is in use.
        RunDocumentInvalidError: a run in the ledger is not what it says.
        SiteDatabaseError: nothing was recorded.
    """

    def write(session: Session) -> DatasetWithdrawal:
        dataset = withdraw_in(session, audit, name, actor=actor_from_user(local_user), now=now)
        query = select(RunLedgerRow.run_id).where(RunLedgerRow.dataset == name, RunLedgerRow.state.in_(STANDING))
        run_ids = tuple(RunId(run_id) for run_id in session.scalars(query.order_by(RunLedgerRow.run_id)))
        said = Verdict(decision=Decision.WITHDRAWN, local_user=local_user, reason=DATASET_WITHDRAWN)
        for run_id in run_ids:
            decide(session, audit, signer=signer, run_id=run_id, verdict=said, now=now)
        return DatasetWithdrawal(dataset=dataset, run_ids=run_ids)

    return db.run_tx("withdraw_dataset", write)
