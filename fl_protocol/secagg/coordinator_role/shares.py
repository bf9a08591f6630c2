"""M3 in, M4 out: what each dealer sealed to each holder, passed on with the proof that the dealer signed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import Sharers, read_share_header, read_sharers
from fl_protocol.secagg.coordinator_role.keys import KeyedCohort
from fl_protocol.secagg.messages import Complaint, DealtShare, DealtShares, ShareKeys, ShareLeaf, StatementKind
from fl_protocol.secagg.reading import check_context, check_sender, check_signature, read_message
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import tree_paths, tree_root
from fl_protocol.signing.signed import SignedBody


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCohort:
    """U2, frozen, with every dealer's leaves and their paths, in the order of the cohort's names."""

    keyed: KeyedCohort
    sharers: Sharers
    leaves: Mapping[SiteId, tuple[ShareLeaf, ...]]
    paths: Mapping[SiteId, tuple[tuple[bytes, ...], ...]]

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The sharers' names, ascending."""
        return self.sharers.sites

    @property
    def quorum(self) -> int:
        """How many must survive, confirm and reveal, by the highest threshold any of them dealt under."""
        return max(self.sharers.quorum, self.keyed.opened.params.min_survivors(self.keyed.n))


def check_m3(keyed: KeyedCohort, data: bytes, *, sender: SiteId) -> ShareKeys:
    """Check one M3 as it arrives: signature, cohort, one leaf for every member, and the root over them.

    Raises:
        SecAggRefusedError: as ``read_share_header``; MESSAGE_MALFORMED, SENDER_MISMATCH, and, blaming the sender,
            SHARE_MISSING, SHARE_INVALID.
    """
    message = read_message(ShareKeys.decode, data, blamed=sender)
    header = read_share_header(message.header, keyed.cohort)
    check_sender(header.site, sender)
    if tuple(leaf.holder for leaf in message.leaves) != keyed.sites:
        raise SecAggRefusedError(RefusalReason.SHARE_MISSING, blamed=sender, n_leaves=len(message.leaves))
    for leaf in message.leaves:
        # Only the share that a dealer keeps travels without a ciphertext.
        if bool(leaf.ciphertext) != (leaf.holder != sender):
            raise SecAggRefusedError(RefusalReason.SHARE_MISSING, blamed=sender, holder=leaf.holder)
    if tree_root([leaf.encode() for leaf in message.leaves]) != header.root:
        raise SecAggRefusedError(RefusalReason.SHARE_INVALID, blamed=sender, cause="root")
    return message


def freeze_sharers(keyed: KeyedCohort, m3s: Mapping[SiteId, bytes]) -> SharedCohort:
    """U2, from the M3 that arrived.

    Raises:
        SecAggRefusedError: as ``check_m3``; COHORT_TOO_SMALL.
    """
    messages = {site: check_m3(keyed, m3s[site], sender=site) for site in sorted(m3s)}
    expected = keyed.opened.params.min_sharers(keyed.n)
    if len(messages) < expected:
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_SMALL, found=len(messages), expected=expected)
    return SharedCohort(
        keyed=keyed,
        sharers=read_sharers([message.header for message in messages.values()], keyed.cohort),
        leaves={site: message.leaves for site, message in messages.items()},
        paths={site: tree_paths([leaf.encode() for leaf in message.leaves]) for site, message in messages.items()},
    )


def make_m4(shared: SharedCohort, to_site: SiteId) -> bytes:
    """M4 for one of the sharers: its leaf of every dealer, itself included.

    Raises:
        SecAggRefusedError: SITE_UNKNOWN.
    """
    if to_site not in shared.sites:
        raise SecAggRefusedError(RefusalReason.SITE_UNKNOWN, site=to_site)
    index = shared.keyed.cohort.index(to_site)
    return DealtShares(
        entries=tuple(
            DealtShare(header=entry, leaf=shared.leaves[dealer][index], path=shared.paths[dealer][index])
            for dealer, entry in zip(shared.sites, shared.sharers.entries, strict=True)
        )
    ).encode()


def check_complaint(keyed: KeyedCohort, data: bytes, *, sender: SiteId) -> Complaint:
    """Check who complains about whom. It proves nothing about the dealer: it is one site's signed word.

    Raises:
        SecAggRefusedError: MESSAGE_MALFORMED, SITE_UNKNOWN, SIGNATURE_INVALID, CONTEXT_MISMATCH, SENDER_MISMATCH.
    """
    signed = read_message(SignedBody.decode, data, blamed=sender)
    complaint = read_message(Complaint.decode, signed.body, blamed=sender)
    check_sender(complaint.site, sender)
    check_signature(keyed.cohort.member(sender).spki_der, StatementKind.COMPLAINT, signed, site=sender)
    check_context(complaint.h_cohort, keyed.cohort.h_cohort, site=sender)
    keyed.cohort.index(complaint.dealer)
    return complaint
