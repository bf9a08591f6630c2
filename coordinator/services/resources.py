"""What the edge services work with, given once by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from coordinator.blobs.store import BlobStore
from coordinator.ca.authority import SITE_LIFETIME, CertificateAuthority
from coordinator.db.tx import Database
from coordinator.oidc.provider import IdentityProvider
from fl_protocol.clock import Clock
from fl_protocol.ids import Sha256Hex
from fl_protocol.signing.keys import Signer
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing


def _nobody_listens() -> None:
    return None


@dataclass(slots=True, kw_only=True)
class Addresses:
    """Where sites reach this coordinator; known once the listeners have their ports."""

    gateway: str
    enrolment: str
    fallback: str = ""
    """The gateway over HTTP/1.1; empty where it is turned off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """How long tokens live when nobody says, and at most."""

    default_lifetime_s: float = 90 * 86400.0
    max_lifetime_s: float = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Database, blobs, keys and clock. Invariant: the three keys are three keys."""

    db: Database
    blobs: BlobStore
    authority: CertificateAuthority
    enrolment_certificate_pem: bytes
    signer: Signer
    release_signer: Signer
    clock: Clock
    addresses: Addresses
    code_lifetime_s: float
    max_blob_bytes: int
    site_lifetime_s: float = SITE_LIFETIME.total_seconds()
    check_in_s: float = 3600.0
    token_rules: TokenRules = TokenRules()
    is_start_by_another: bool = True
    """Whether a run needs another person to start it than the one who created it."""
    is_release_signed_by_two: bool = True
    """Whether a release is published by two persons' signatures, or by one's."""
    signature_max_age_s: float = 300.0
    """How long ago the identity provider may have asked a person who they are, for a signature of theirs."""
    identity_provider: IdentityProvider | None = None
    wake_driver: Callable[[], None] = _nobody_listens
    wake_sites: Callable[[], None] = _nobody_listens
    forget_identities: Callable[[], None] = _nobody_listens
    is_driver_alive: Callable[[], bool] | None = None
    meter: Meter = field(default_factory=lambda: Meter(COORDINATOR_METRICS))
    """Counts what is asked and answered, and exposes it."""
    tracing: Tracing = NO_TRACING
    """Tells what is asked and answered as spans, where that is set."""

    def __post_init__(self) -> None:
        """Refuse one key in two roles: a signature as one thing must say nothing as another."""
        if self.signer.spki_der == self.release_signer.spki_der:
            raise ValueError("the signing key and the release key are the same key")

    @property
    def origin(self) -> str:
        """The name of this coordinator's audit log: its first root's fingerprint stands in it."""
        return origin_of(self.authority.founding_sha256)

    def now(self) -> datetime:
        """The present instant."""
        return self.clock.now()


def origin_of(root_sha256: Sha256Hex) -> str:
    """The name of the audit log of the coordinator that was founded with this root."""
    return f"wardround://coordinator/{root_sha256[:16]}"
