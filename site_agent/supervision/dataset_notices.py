"""Tells the coordinator which datasets this site took out of use, so that the releases that used them are marked.

The register of datasets is the outbox: a withdrawal stands there before anybody is told of it, and each statement
follows from its row, byte for byte. So nothing is lost between the two, and telling again is telling the same. Only a
dataset that a run of this coordinator was approved for is told of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import rfc8785
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.ids import SiteId
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from site_agent.datasets.registry import list_datasets
from site_agent.db.instants import instant_text
from site_agent.db.models import RunLedgerRow
from site_agent.errors import CoordinatorRefusedError, LinkError, SiteAgentError
from site_agent.supervision.seams import SiteSeams

log = structlog.get_logger(__name__)

STATEMENT_KIND = "WR/sig/dataset-withdrawn"
UNSPECIFIED = "unspecified"
LOOK_EVERY_S = 2.0
TELL_AGAIN_S = 86400.0
"""A coordinator that was set back to a backup has forgotten what it was told, and says nothing of that."""
_FINAL = frozenset({"INVALID_ARGUMENT", "UNIMPLEMENTED"})
"""To these, asking again soon changes nothing: a coordinator of the version before does not know the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawnDataset:
    """A row of the register, as far as it is told."""

    name: str
    withdrawn_at: datetime


def dataset_statement(signer: Signer, site_id: SiteId, withdrawn: WithdrawnDataset) -> SignedBody:
    """The site's word: canonical JSON (RFC 8785). The dataset's digest and the reason stay at the site."""
    body = rfc8785.dumps(
        {
            "site_id": site_id,
            "dataset": withdrawn.name,
            "dataset_sha256": None,
            "reason": UNSPECIFIED,
            "at": instant_text(withdrawn.withdrawn_at),
        }
    )
    return sign_body(signer, STATEMENT_KIND, body)


def withdrawn_and_approved(session: Session) -> tuple[WithdrawnDataset, ...]:
    """What was taken out of use, of the datasets that some run here was approved for."""
    query = select(RunLedgerRow.dataset).where(RunLedgerRow.approved_at.is_not(None))
    approved = set(session.scalars(query))
    return tuple(
        WithdrawnDataset(name=dataset.name, withdrawn_at=dataset.withdrawn_at)
        for dataset in list_datasets(session, with_withdrawn=True)
        if dataset.withdrawn_at is not None and dataset.name in approved
    )


class DatasetNotices:
    """Tells each withdrawal once a start, and all of them again once a day."""

    def __init__(self, seams: SiteSeams, *, clock_s: Callable[[], float]) -> None:
        """Nothing was told yet. ``clock_s`` counts seconds and never goes back."""
        self._seams = seams
        self._clock_s = clock_s
        self._told: dict[WithdrawnDataset, float] = {}

    async def run(self) -> None:
        """Look until cancelled; a coordinator that is away is told when it is back."""
        while True:
            try:
                await self.tell()
            except LinkError as error:
                log.debug("dataset_notices_wait", code=error.code)
            except SiteAgentError as error:
                log.warning("dataset_notices_failed", code=error.code, cause=str(error))
            await asyncio.sleep(LOOK_EVERY_S)

    async def tell(self) -> None:
        """Tell what is due.

        Raises:
            LinkError: the coordinator does not answer; what is due stays due.
            SiteDatabaseError: the register cannot be read.
        """
        seams = self._seams
        now_s = self._clock_s()
        found = await asyncio.to_thread(seams.db.run_read, "withdrawn-datasets", withdrawn_and_approved)
        for withdrawn in found:
            if now_s - self._told.get(withdrawn, float("-inf")) < TELL_AGAIN_S:
                continue
            statement = dataset_statement(seams.signer, seams.site_id, withdrawn)
            try:
                await seams.client.report_dataset_withdrawn(statement=statement)
            except CoordinatorRefusedError as error:
                if error.status not in _FINAL:
                    raise
                log.warning("dataset_notice_refused", code=error.refusal_code, status=error.status)
            else:
                log.info("dataset_withdrawal_told")
            self._told[withdrawn] = now_s
