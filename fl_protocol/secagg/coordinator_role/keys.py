"""M1 in, M2 out: who takes part, with which keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.secagg.cohort import Cohort, read_advertisement, read_cohort
from fl_protocol.secagg.messages import KeyAdvertisement, SignedList
from fl_protocol.secagg.reading import PeerVerifier, check_sender, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import hash_manifest
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.payload_layout import PayloadLayout
from fl_protocol.spec.secagg_params import SecAggParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeOpen:
    """An exchange before its first message.

    Attributes:
        manifest: M0, as it was signed and sent.
        exchange_index: which exchange of the round.
        exchange_attempt: which attempt at it.
        layout: of the payload.
        params: the rules of the run.
        roster: the pins of the run's sites.
    """

    manifest: SignedBody
    exchange_index: int
    exchange_attempt: int
    layout: PayloadLayout
    params: SecAggParams
    roster: Mapping[SiteId, Sha256Hex]

    @property
    def h_manifest(self) -> bytes:
        """The hM of this exchange."""
        return hash_manifest(
            self.manifest.body, exchange_index=self.exchange_index, exchange_attempt=self.exchange_attempt
        )

    @property
    def peers(self) -> PeerVerifier:
        """Whom the run's roster names."""
        return PeerVerifier(approved=self.roster)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedCohort:
    """U1, frozen."""

    opened: ExchangeOpen
    cohort: Cohort

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The cohort's names, ascending."""
        return self.cohort.sites

    @property
    def n(self) -> int:
        """How many sites."""
        return self.cohort.n

    @property
    def threshold(self) -> int:
        """Shamir's t by the run's rules; a site that assumes colluders may deal under a higher one."""
        return self.opened.params.threshold(self.cohort.n)


def check_m1(opened: ExchangeOpen, data: bytes, *, sender: SiteId) -> KeyAdvertisement:
    """Check one M1 as it arrives.

    Raises:
        SecAggRefusedError: as ``read_advertisement``; SENDER_MISMATCH.
    """
    signed = read_message(SignedBody.decode, data, blamed=sender)
    said = read_advertisement(signed, h_manifest=opened.h_manifest, peers=opened.peers)
    check_sender(said.site, sender)
    return said


def freeze_cohort(opened: ExchangeOpen, m1s: Mapping[SiteId, bytes]) -> KeyedCohort:
    """U1, from the M1 of the sites that are to take part.

    Raises:
        SecAggRefusedError: as ``read_cohort``; COHORT_TOO_SMALL, COHORT_TOO_LARGE.
    """
    entries = [read_message(SignedBody.decode, m1s[site], blamed=site) for site in sorted(m1s)]
    cohort = read_cohort(entries, h_manifest=opened.h_manifest, peers=opened.peers)
    expected = opened.params.min_survivors(cohort.n)
    if cohort.n < expected:
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_SMALL, found=cohort.n, expected=expected)
    if cohort.n > opened.layout.max_sites:
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_LARGE, found=cohort.n, max_sites=opened.layout.max_sites)
    return KeyedCohort(opened=opened, cohort=cohort)


def make_m2(keyed: KeyedCohort) -> bytes:
    """M2, the same for every site of the cohort."""
    return SignedList(entries=keyed.cohort.entries).encode()
