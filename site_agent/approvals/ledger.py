"""Gathers what the site itself knows for a policy's evaluation: its register, its peers, the size of a payload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy.orm import Session

from fl_protocol.errors import ProtocolError
from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.errors import AdapterLayoutSparseError
from fl_protocol.tensors.layout_rules import check_layout
from site_agent.approvals.errors import LayoutSparseError, RunDocumentInvalidError
from site_agent.datasets.registry import list_datasets
from site_agent.enrolment.identity_file import SiteIdentity
from site_agent.policy.evaluate import DatasetFacts, SiteLedger


def site_ledger_for(
    session: Session,
    *,
    run_spec: RunSpec,
    layout_json: bytes,
    identity: SiteIdentity,
    peers: Mapping[str, str],
    now: datetime,
) -> SiteLedger:
    """The ledger against which one run is evaluated; ``now`` decides which datasets are over.

    Raises:
        RunDocumentInvalidError: the layout is not the one whose digest the run names.
    """
    datasets = {
        dataset.name: DatasetFacts(
            purposes=frozenset(dataset.purposes),
            n_records=dataset.n_records,
            n_patients=dataset.n_patients,
            consent=dataset.consent,
            legal_basis=dataset.legal_basis,
            expires_on=None if dataset.expires_on is None else dataset.expires_on.isoformat(),
            is_expired=dataset.is_expired(now),
        )
        for dataset in list_datasets(session)
    }
    return SiteLedger(
        site_id=identity.site_id,
        signing_key_sha256=identity.signing_key_sha256,
        datasets=datasets,
        peers=peers,
        payload_bytes=payload_bytes(run_spec, layout_json),
    )


def payload_bytes(run_spec: RunSpec, layout_json: bytes) -> int:
    """How many bytes of ring vector leave this site in the run's larger kind of round.

    Raises:
        RunDocumentInvalidError: the layout cannot be read, or is not the one whose digest the run names.
        LayoutSparseError: it has other tensors than low-rank pairs on linear modules.
    """
    try:
        document = json.loads(layout_json)
        if not isinstance(document, dict):
            raise _layout_error("the adapter's layout is no JSON object")
        layout = AdapterLayout.from_document(document)
        if layout.digest() != run_spec.adapter.layout_sha256:
            raise _layout_error("the adapter's layout is not the one that the run names")
        check_layout(layout, run_spec.adapter)
        segments = ALGORITHMS[run_spec.aggregation.algorithm].segments
        return max(segments(run_spec, layout, kind).n_bytes for kind in RoundKind)
    except AdapterLayoutSparseError as error:
        message = f"the adapter would show more than a sum protects: {error}"
        advice = "Decline the run. Its study lead may name linear modules as targets; embeddings and heads stay frozen."
        raise LayoutSparseError(message, advice=advice) from error
    except (ValueError, KeyError, ProtocolError) as error:
        raise _layout_error("the adapter's layout cannot be read") from error


def _layout_error(message: str) -> RunDocumentInvalidError:
    advice = "Decline the run and tell the study lead; the coordinator sent something else than it announced."
    return RunDocumentInvalidError(message, advice=advice)
