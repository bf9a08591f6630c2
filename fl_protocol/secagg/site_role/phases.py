"""What a site knows in each phase: one frozen dataclass a phase, which holds what later phases need and no more.

Safety: secrets leave the state as soon as they are used up. The transport key and the own secrets go when the shares
are in and the vector is masked; the peers' shares go when one kind of each has been revealed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fl_protocol.ids import SiteId
from fl_protocol.secagg.cohort import Cohort, Sharers, Survivors
from fl_protocol.secagg.messages import AuditHeads
from fl_protocol.secagg.reading import PeerVerifier
from fl_protocol.secagg.reasons import RefusalReason, SecAggRefusedError
from fl_protocol.secagg.transcript import hash_manifest
from fl_protocol.signing.signed import SignedBody
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.secagg_params import SecAggParams


class SitePhase(StrEnum):
    """Where a site stands in an exchange."""

    OPENED = "opened"
    ADVERTISED = "advertised"
    SHARED = "shared"
    AGREED = "agreed"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    REVEALED = "revealed"
    FINISHED = "finished"
    COMPLAINED = "complained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was fixed before the first message, and never changes."""

    site_id: SiteId
    context: ExchangeContext
    manifest: SignedBody
    coordinator_spki: bytes
    n_ring32: int
    n_ring64: int
    max_sites: int
    params: SecAggParams
    peers: PeerVerifier
    heads: AuditHeads

    @property
    def h_manifest(self) -> bytes:
        """The hM of this exchange."""
        return hash_manifest(
            self.manifest.body,
            exchange_index=self.context.exchange_index,
            exchange_attempt=self.context.exchange_attempt,
        )

    @property
    def n_bytes(self) -> int:
        """The size of the vector."""
        return 4 * self.n_ring32 + 8 * self.n_ring64


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSecrets:
    """The two secrets that this site shares among the cohort."""

    rho: int = field(repr=False)
    b: int = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShare:
    """Both shares that one dealer gave this site. Safety: at most one of them ever leaves."""

    dealer: SiteId
    rho_share: bytes = field(repr=False)
    b_share: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The manifest was checked."""

    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """M1 was made."""

    terms: Terms
    secrets: OwnSecrets
    transport_private: bytes = field(repr=False)
    m1: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The cohort is known, M3 was made."""

    terms: Terms
    secrets: OwnSecrets
    transport_private: bytes = field(repr=False)
    cohort: Cohort
    own_share: HeldShare
    m3: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Everybody's shares are here and match their commitments; masks can be made."""

    terms: Terms
    secrets: OwnSecrets
    sharers: Sharers
    held: tuple[HeldShare, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """M5 was made. Invariant: no key of a mask is left, so that no second vector can be masked."""

    terms: Terms
    sharers: Sharers
    held: tuple[HeldShare, ...]
    m5: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """M7 was made: this is the one survivor set."""

    terms: Terms
    survivors: Survivors
    held: tuple[HeldShare, ...]
    m7: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """M9 was made. Invariant: no share is left."""

    terms: Terms
    survivors: Survivors
    m9: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The coordinator signed the result."""

    terms: Terms
    survivors: Survivors
    m10: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Complained:
    """A dealer cheated; this exchange is over for the site."""

    terms: Terms
    cohort: Cohort
    complaint: bytes


SiteState = Opened | Advertised | Shared | Agreed | Masked | Confirmed | Revealed | Finished | Complained


def check_own_entry(own: SignedBody, entries: tuple[SignedBody, ...]) -> None:
    """Check that a list shows this site's own statement, byte for byte.

    Raises:
        SecAggRefusedError: OWN_MESSAGE_ALTERED.
    """
    if own not in entries:
        raise SecAggRefusedError(RefusalReason.OWN_MESSAGE_ALTERED)


def check_enough(found: int, expected: int) -> None:
    """Check the size of a frozen set against this site's own rule.

    Raises:
        SecAggRefusedError: COHORT_TOO_SMALL.
    """
    if found < expected:
        raise SecAggRefusedError(RefusalReason.COHORT_TOO_SMALL, found=found, expected=expected)
