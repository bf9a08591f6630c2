"""What this site remembers of payloads beyond one round: among whom they were masked, and in which sums they are.

Every payload of a round that starts from adapter D carries the evaluation of D on this site's dataset E (decision 12).
That part does not depend on chance, so it is the same in another attempt, in another kind of round and in another run:
two sums of it over different sites would differ by what some of them lost. Hence it has a name of its own, under which
cohorts and survivors are kept for good, in the database and not in a folder that goes with its round. The counts of a
vocabulary run depend on chance as little, and on no adapter: they are named, and kept apart, in the same way.

Functions on the session of a transaction that the round book runs; they decide nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fl_protocol.ids import RunId, SiteId
from fl_protocol.packing import tagged_digest
from fl_protocol.spec.context import ExchangeContext
from site_agent.db.models import MaskedCohortRow, RevealedEvaluationRow
from site_agent.errors import OneShotSpentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation that a payload carries.

    Attributes:
        sha256: its name, from ``evaluation_name``.
        is_alone: whether nothing else is in the payload, so that all of it is known by this name.
    """

    sha256: str
    is_alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedCohort:
    """U1 of an exchange in which an evaluation was masked, and the threshold under which this site dealt there."""

    context: ExchangeContext
    sites: frozenset[SiteId]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedExchange:
    """The exchange in which this site revealed shares, and the digest ``hU3`` of the survivors that it signed there."""

    context: ExchangeContext
    h_survivors: bytes


def evaluation_name(*, adapter_sha256: str, dataset_sha256: str) -> str:
    """The name of the evaluation of an adapter on a dataset.

    Safety: neither the run nor its evaluation settings are in it. ``max_records`` of 1000 and of 1001 may choose the
    same records, so a second run with other settings could hold the same loss under another name.
    """
    return tagged_digest("evaluation", bytes.fromhex(adapter_sha256), bytes.fromhex(dataset_sha256)).hex()


def counts_name(*, list_sha256: str, dataset_sha256: str) -> str:
    """The name of a dataset's counts over a list of codes.

    Safety: neither the run nor its bounds are in it, as in ``evaluation_name``. What two minima leave out differs, and
    most counts do not.
    """
    return tagged_digest("counts", bytes.fromhex(list_sha256), bytes.fromhex(dataset_sha256)).hex()


def nothing_name(run_id: RunId) -> str:
    """The name of what a round holds that evaluates nothing, for one run."""
    return tagged_digest("nothing", run_id.encode()).hex()


def payload_names(payload_sha256: str, evaluation: Evaluation) -> tuple[str, ...]:
    """By what a payload is known: its vector's digest and, where nothing in it depends on chance, what it evaluates.

    The digest of the vector's bytes is not enough there: another thread count may change the last bit of a sum.
    """
    return (payload_sha256, evaluation.sha256) if evaluation.is_alone else (payload_sha256,)


def remember_cohort(session: Session, evaluation: Evaluation, cohort: MaskedCohort, *, at: str) -> None:
    """Keep a cohort, before the payload is masked among it. Keeping it again does nothing."""
    key = (evaluation.sha256, cohort.context.encode())
    if session.get(MaskedCohortRow, key) is None:
        row = MaskedCohortRow(
            evaluation_sha256=evaluation.sha256,
            context=cohort.context.encode(),
            sites_json=_json_from_sites(cohort.sites),
            threshold=cohort.threshold,
            at=at,
        )
        session.add(row)


def cohorts_of(session: Session, evaluation: Evaluation, *, besides: ExchangeContext) -> tuple[MaskedCohort, ...]:
    """Every cohort in which the evaluation was masked, but that of one exchange."""
    query = (
        select(MaskedCohortRow)
        .where(MaskedCohortRow.evaluation_sha256 == evaluation.sha256, MaskedCohortRow.context != besides.encode())
        .order_by(MaskedCohortRow.at, MaskedCohortRow.context)
    )
    return tuple(
        MaskedCohort(
            context=ExchangeContext.decode(row.context),
            sites=_sites_from_json(row.sites_json),
            threshold=row.threshold,
        )
        for row in session.scalars(query)
    )


def remember_survivors(
    session: Session, evaluation: Evaluation, context: ExchangeContext, survivors: Collection[SiteId], *, at: str
) -> None:
    """Keep the survivors among whom an evaluation is unmasked, before M9 leaves.

    Raises:
        OneShotSpentError: it was unmasked among others before.
    """
    known = survivors_of(session, evaluation)
    if known is None:
        row = RevealedEvaluationRow(
            evaluation_sha256=evaluation.sha256,
            context=context.encode(),
            sites_json=_json_from_sites(survivors),
            at=at,
        )
        session.add(row)
    elif known != frozenset(survivors):
        message = "this evaluation is in a sum over other sites; it is not revealed in a second one"
        raise OneShotSpentError(message, exchange_attempt=context.exchange_attempt)


def survivors_of(session: Session, evaluation: Evaluation) -> frozenset[SiteId] | None:
    """Among whom the evaluation was unmasked; None where this site never revealed it."""
    row = session.get(RevealedEvaluationRow, evaluation.sha256)
    return None if row is None else _sites_from_json(row.sites_json)


def _json_from_sites(sites: Collection[SiteId]) -> str:
    return json.dumps(sorted(sites))


def _sites_from_json(text: str) -> frozenset[SiteId]:
    return frozenset(SiteId(site) for site in json.loads(text))
