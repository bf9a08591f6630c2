"""A round is committed: the new public state becomes the run's, and the sites of U3 are counted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from coordinator.db.models import Exchange, Participation, Round, Run
from coordinator.rounds.participation_machine import ParticipationEvent, ParticipationState
from coordinator.services.audit_trail import AuditTrail
from coordinator.services.round_access import move_participation, ref_of, round_facts
from coordinator.services.site_instructions import published_result
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId


def commit_round(
    run: Run,
    row: Round,
    exchange: Exchange,
    *,
    participations: Mapping[SiteId, Participation],
    trail: AuditTrail,
    now: datetime,
) -> None:
    """Write the commit; the caller's transaction holds the round's step to COMMITTED.

    Invariant: the blob of the new state was durable before the event that led here.
    """
    version, sha256, blob = row.state_version_after, row.state_sha256_after, row.state_blob_sha256_after
    assert version is not None and sha256 is not None and blob is not None, "a folded round has its state"  # noqa: PT018 # one fact
    counted = [SiteId(site) for site in exchange.u3 or ()]
    for site in counted:
        # A site that lied in M9 stays REJECTED, though its masked vector is in the sum.
        if participations[site].state != ParticipationState.REJECTED.value:
            move_participation(participations[site], ParticipationEvent.COUNTED, now=now)
    row.finished_at = now
    run.public_state_version = version
    run.public_state_sha256 = sha256
    run.public_state_blob_sha256 = blob
    run.last_result_sha256 = hashlib.sha256(published_result(exchange).m10).hexdigest()
    run.next_round_index = row.round_index + 1
    run.next_round_attempt = 0
    trail.add(
        AuditKind.ROUND_COMMITTED,
        {
            **round_facts(ref_of(row)),
            "survivors": ",".join(counted),
            "sum_sha256": exchange.sum_blob_sha256,
            "result_sha256": run.last_result_sha256,
            "transcript_root": exchange.transcript_root,
            "public_state_version": version,
            "public_state_sha256": sha256,
        },
    )
