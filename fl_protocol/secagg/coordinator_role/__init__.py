"""The coordinator's half of an exchange: pure functions over the messages it stored, one file a phase.

Each ``freeze_*`` fixes one of the three sets; the caller does it once and keeps which messages it froze. Every function
may be called again over the same messages, with the same outcome. The coordinator is trusted with delivery only: what
it refuses here early, a site would refuse later.
"""

from __future__ import annotations

from fl_protocol.secagg.coordinator_role.confirming import check_m7, make_m8
from fl_protocol.secagg.coordinator_role.evidence import make_sum_evidence
from fl_protocol.secagg.coordinator_role.keys import ExchangeOpen, KeyedCohort, check_m1, freeze_cohort, make_m2
from fl_protocol.secagg.coordinator_role.result import make_m10, transcript_root
from fl_protocol.secagg.coordinator_role.shares import (
    SharedCohort,
    check_complaint,
    check_m3,
    freeze_sharers,
    make_m4,
)
from fl_protocol.secagg.coordinator_role.unmasking import check_m9, recover_mask_terms, recover_secrets
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort, check_m5, freeze_survivors, make_m6

__all__ = [
    "ExchangeOpen",
    "KeyedCohort",
    "SharedCohort",
    "SurvivingCohort",
    "check_complaint",
    "check_m1",
    "check_m3",
    "check_m5",
    "check_m7",
    "check_m9",
    "freeze_cohort",
    "freeze_sharers",
    "freeze_survivors",
    "make_m2",
    "make_m4",
    "make_m6",
    "make_m8",
    "make_m10",
    "make_sum_evidence",
    "recover_mask_terms",
    "recover_secrets",
    "transcript_root",
]
