"""What the coordinator shows to whoever checks its sum: signed statements, and each sharer's one revealed secret."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.secagg import shamir
from fl_protocol.secagg.coordinator_role.unmasking import recover_secrets
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort
from fl_protocol.secagg.reexecution import SumEvidence


def make_sum_evidence(surviving: SurvivingCohort, m9s: Mapping[SiteId, bytes]) -> bytes:
    """The evidence of a sum that was made, the same for everybody who asks.

    Args:
        surviving: U3.
        m9s: the reveals that the masks were removed with.

    Raises:
        SecAggRefusedError: as ``recover_secrets``; it was not, when the sum was made.
    """
    secrets = recover_secrets(surviving, m9s)
    return SumEvidence(
        m1s=surviving.survivors.cohort.entries,
        m3_headers=surviving.survivors.sharers.entries,
        m5s=surviving.survivors.entries,
        secrets=tuple(shamir.element_to_bytes(secrets[site]) for site in surviving.shared.sites),
    ).encode()
