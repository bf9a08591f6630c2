"""The three frozen sets of an exchange, U1, U2 and U3, read from the signed statements of their members.

Both roles read them with the same functions: a site trusts the coordinator with nothing but delivery, and the
coordinator refuses early what a site would refuse later. A set keeps the statements that it was read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.secagg.key_agreement import KeyAgreementError, agree
from fl_protocol.secagg.messages import Confirmation, KeyAdvertisement, ShareHeader, StatementKind, UploadHeader
from fl_protocol.secagg.reading import PeerVerifier, check_ascending, check_context, check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import hash_cohort, hash_sharers, hash_survivors
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.secagg_params import SecAggParams

_PROBE_PRIVATE_KEY = bytes([0x40]) * 32
"""Any private key shows whether a public key is of small order; this one is nobody's."""

_BASE_RULE = SecAggParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """U1: the sites that advertised keys, in the order of their names."""

    h_manifest: bytes
    entries: tuple[SignedBody, ...]
    members: tuple[KeyAdvertisement, ...]
    h_cohort: bytes

    @property
    def n(self) -> int:
        """How many sites."""
        return len(self.members)

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """Their names, ascending."""
        return tuple(member.site for member in self.members)

    def index(self, site: SiteId) -> int:
        """The site's place, from 0; its Shamir holder number is one more.

        Raises:
            SecAggRefusedError: SITE_UNKNOWN.
        """
        for index, member in enumerate(self.members):
            if member.site == site:
                return index
        raise SecAggRefusedError(RefusalReason.SITE_UNKNOWN, site=site)

    def member(self, site: SiteId) -> KeyAdvertisement:
        """What the site advertised. Raises SecAggRefusedError (SITE_UNKNOWN)."""
        return self.members[self.index(site)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharers:
    """U2: the members of the cohort that dealt shares; the masks cancel among exactly these."""

    cohort: Cohort
    entries: tuple[SignedBody, ...]
    headers: tuple[ShareHeader, ...]
    h_sharers: bytes

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """Their names, ascending."""
        return tuple(header.site for header in self.headers)

    @property
    def quorum(self) -> int:
        """The largest threshold that any of them dealt under: how many must confirm and reveal."""
        return max(header.threshold for header in self.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """U3: the sharers whose masked vector arrived whole; the sum is theirs."""

    sharers: Sharers
    entries: tuple[SignedBody, ...]
    headers: tuple[UploadHeader, ...]
    h_survivors: bytes

    @property
    def cohort(self) -> Cohort:
        """The cohort they come from."""
        return self.sharers.cohort

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """Their names, ascending."""
        return tuple(header.site for header in self.headers)

    @property
    def dropped(self) -> tuple[SiteId, ...]:
        """The sharers that did not survive, ascending."""
        survivors = set(self.sites)
        return tuple(site for site in self.sharers.sites if site not in survivors)


def read_advertisement(signed: SignedBody, *, h_manifest: bytes, peers: PeerVerifier) -> KeyAdvertisement:
    """Read one M1 and check its pin, signature, context and keys.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SITE_NOT_APPROVED, SIGNATURE_INVALID, CONTEXT_MISMATCH, KEY_INVALID.
    """
    said = read_message(KeyAdvertisement.decode, signed.body)
    peers.check(said.site, said.spki_der)
    check_signature(said.spki_der, StatementKind.M1, signed, site=said.site)
    check_context(said.h_manifest, h_manifest, site=said.site)
    for key in (said.mask_key, said.transport_key):
        try:
            agree(_PROBE_PRIVATE_KEY, key)
        except KeyAgreementError as error:
            raise SecAggRefusedError(RefusalReason.KEY_INVALID, blamed=said.site) from error
    return said


def read_cohort(entries: Sequence[SignedBody], *, h_manifest: bytes, peers: PeerVerifier) -> Cohort:
    """Read U1 and check every member, that nobody is listed twice and that no key appears twice.

    Raises:
        SecAggRefusedError: as ``read_advertisement``; SITE_REPEATED, KEY_REPEATED.
    """
    members = tuple(read_advertisement(entry, h_manifest=h_manifest, peers=peers) for entry in entries)
    check_ascending([member.site for member in members])
    seen: set[bytes] = set()
    for member in members:
        for key in (member.mask_key, member.transport_key, member.spki_der):
            if key in seen:
                raise SecAggRefusedError(RefusalReason.KEY_REPEATED, site=member.site)
            seen.add(key)
    return Cohort(
        h_manifest=h_manifest,
        entries=tuple(entries),
        members=members,
        h_cohort=hash_cohort(entry.body for entry in entries),
    )


def read_share_header(signed: SignedBody, cohort: Cohort) -> ShareHeader:
    """Read one M3 header and check that a member of this cohort made it, under a threshold that protects.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SITE_UNKNOWN, SIGNATURE_INVALID, CONTEXT_MISMATCH, THRESHOLD_INVALID.
    """
    header = read_message(ShareHeader.decode, signed.body)
    member = cohort.member(header.site)
    check_signature(member.spki_der, StatementKind.M3, signed, site=header.site)
    check_context(header.h_cohort, cohort.h_cohort, site=header.site)
    # A dealer that assumes colluders deals under a higher threshold than others do; lower than the rule is never right.
    if not _BASE_RULE.threshold(cohort.n) <= header.threshold <= cohort.n:
        raise SecAggRefusedError(
            RefusalReason.THRESHOLD_INVALID, blamed=header.site, threshold=header.threshold, n=cohort.n
        )
    return header


def read_sharers(entries: Sequence[SignedBody], cohort: Cohort) -> Sharers:
    """Read U2 and check every header.

    Raises:
        SecAggRefusedError: as ``read_share_header``; SITE_REPEATED.
    """
    headers = tuple(read_share_header(entry, cohort) for entry in entries)
    check_ascending([header.site for header in headers])
    return Sharers(
        cohort=cohort,
        entries=tuple(entries),
        headers=headers,
        h_sharers=hash_sharers(cohort.h_cohort, (entry.body for entry in entries)),
    )


def read_upload_header(signed: SignedBody, sharers: Sharers, *, n_bytes: int) -> UploadHeader:
    """Read one M5 and check that a sharer made it, for this set of sharers and this size.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SITE_UNKNOWN, SIGNATURE_INVALID, CONTEXT_MISMATCH, SIZE_MISMATCH.
    """
    header = read_message(UploadHeader.decode, signed.body)
    if header.site not in sharers.sites:
        raise SecAggRefusedError(RefusalReason.SITE_UNKNOWN, site=header.site)
    check_signature(sharers.cohort.member(header.site).spki_der, StatementKind.M5, signed, site=header.site)
    check_context(header.h_sharers, sharers.h_sharers, site=header.site)
    if header.n_bytes != n_bytes:
        raise SecAggRefusedError(
            RefusalReason.SIZE_MISMATCH, blamed=header.site, expected=n_bytes, found=header.n_bytes
        )
    return header


def read_survivors(entries: Sequence[SignedBody], sharers: Sharers, *, n_bytes: int) -> Survivors:
    """Read U3 and check every header.

    Raises:
        SecAggRefusedError: as ``read_upload_header``; SITE_REPEATED.
    """
    headers = tuple(read_upload_header(entry, sharers, n_bytes=n_bytes) for entry in entries)
    check_ascending([header.site for header in headers])
    return Survivors(
        sharers=sharers,
        entries=tuple(entries),
        headers=headers,
        h_survivors=hash_survivors(sharers.h_sharers, (entry.body for entry in entries)),
    )


def read_confirmation(signed: SignedBody, survivors: Survivors) -> Confirmation:
    """Read one M7 and check that a survivor made it, for this survivor set.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SITE_UNKNOWN, SIGNATURE_INVALID, CONTEXT_MISMATCH.
    """
    said = read_message(Confirmation.decode, signed.body)
    if said.site not in survivors.sites:
        raise SecAggRefusedError(RefusalReason.SITE_UNKNOWN, site=said.site)
    check_signature(survivors.cohort.member(said.site).spki_der, StatementKind.M7, signed, site=said.site)
    check_context(said.h_survivors, survivors.h_survivors, site=said.site)
    return said


def check_confirmations(entries: Sequence[SignedBody], survivors: Survivors, *, quorum: int) -> None:
    """Check that at least ``quorum`` distinct survivors signed this survivor set, and nobody in the list another.

    Raises:
        SecAggRefusedError: as ``read_confirmation``; SITE_REPEATED, QUORUM_MISSING.
    """
    check_ascending([read_confirmation(entry, survivors).site for entry in entries])
    if len(entries) < quorum:
        raise SecAggRefusedError(RefusalReason.QUORUM_MISSING, found=len(entries), expected=quorum)
