"""M5 in, M6 out: whose masked vector arrived whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import Survivors, read_survivors, read_upload_header
from fl_protocol.secagg.coordinator_role.shares import SharedCohort
from fl_protocol.secagg.messages import SignedList, UploadHeader
from fl_protocol.secagg.reading import check_sender, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.signing.signed import SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivingCohort:
    """U3, frozen. Invariant, the caller's to keep: there is one an exchange."""

    shared: SharedCohort
    survivors: Survivors

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The survivors' names, ascending."""
        return self.survivors.sites

    @property
    def quorum(self) -> int:
        """How many must confirm, and how many must reveal."""
        return max(self.survivors.sharers.quorum, self.shared.keyed.threshold)


def check_m5(shared: SharedCohort, data: bytes, *, sender: SiteId) -> UploadHeader:
    """Check one upload's header as it arrives; the caller compares ``chunk_root`` with the tree of what it received.

    Raises:
        SecAggRefusedError: as ``read_upload_header``; SENDER_MISMATCH.
    """
    signed = read_message(SignedBody.decode, data, blamed=sender)
    header = read_upload_header(signed, shared.sharers, n_bytes=shared.keyed.opened.layout.n_bytes)
    check_sender(header.site, sender)
    return header


def freeze_survivors(shared: SharedCohort, m5s: Mapping[SiteId, bytes]) -> SurvivingCohort:
    """U3, from the headers of the uploads that are complete.

    Raises:
        SecAggRefusedError: as ``read_survivors``; COHORT_TOO_SMALL.
    """
    if len(m5s) < shared.quorum:
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_SMALL, found=len(m5s), expected=shared.quorum)
    entries = [read_message(SignedBody.decode, m5s[site], blamed=site) for site in sorted(m5s)]
    survivors = read_survivors(entries, shared.sharers, n_bytes=shared.keyed.opened.layout.n_bytes)
    return SurvivingCohort(shared=shared, survivors=survivors)


def make_m6(surviving: SurvivingCohort) -> bytes:
    """M6, the same for every survivor."""
    return SignedList(entries=surviving.survivors.entries).encode()
