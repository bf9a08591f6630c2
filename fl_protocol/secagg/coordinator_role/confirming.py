"""M7 in, M8 out: a threshold of survivors signed the same survivor set."""

from __future__ import annotations

from collections.abc import Mapping

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import check_confirmations, read_confirmation
from fl_protocol.secagg.coordinator_role.uploads import SurvivingCohort
from fl_protocol.secagg.messages import Confirmation, SignedList
from fl_protocol.secagg.reading import check_sender, read_message
from fl_protocol.signing.signed import SignedBody


def check_m7(surviving: SurvivingCohort, data: bytes, *, sender: SiteId) -> Confirmation:
    """Check one M7 as it arrives.

    Raises:
        SecAggRefusedError: as ``read_confirmation``; SENDER_MISMATCH.
    """
    said = read_confirmation(read_message(SignedBody.decode, data, blamed=sender), surviving.survivors)
    check_sender(said.site, sender)
    return said


def make_m8(surviving: SurvivingCohort, m7s: Mapping[SiteId, bytes]) -> bytes:
    """M8, the same for every survivor.

    Raises:
        SecAggRefusedError: as ``check_confirmations``.
    """
    entries = tuple(read_message(SignedBody.decode, m7s[site], blamed=site) for site in sorted(m7s))
    check_confirmations(entries, surviving.survivors, quorum=surviving.quorum)
    return SignedList(entries=entries).encode()
