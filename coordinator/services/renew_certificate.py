"""A site's next certificate, and its word that it is there: by the certificate that it has, or by its signing key.

The name in a certificate is that of the site whose key signed the statement; the request is read for its key only. The
same request again is the same certificate, so that a lost answer costs nothing. What a certificate replaces ends when
it is first used (``identify_site``).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.ca.authority import IssuedCertificate
from coordinator.db import models
from coordinator.db.audit import append_audit
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import (
    PossessionUnprovenError,
    RenewalChallengeError,
    RequestInvalidError,
    SiteClonedError,
    StatementInvalidError,
)
from coordinator.services.resources import Resources
from coordinator.services.site_statements import Standing, note_statement, verified_statement
from fl_protocol.audit.events import AuditKind
from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.csr import read_csr
from fl_protocol.pki.errors import CertificateRequestInvalidError
from fl_protocol.pki.keys import key_fingerprint, spki_from_public_key
from fl_protocol.pki.tls import certificate_from_pem, der_from_certificate
from fl_protocol.signing.keys import SignatureInvalidError, SigningKeyInvalidError
from fl_protocol.signing.renewal import NONCE_BYTES, RenewalChallenge, sign_challenge, verify_challenge, verify_proof
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import SiteStatement, SiteStatementKind
from fl_protocol.signing.trusted_roots import TrustedRoots, sign_roots

_CHALLENGE_LIVES = timedelta(minutes=5)
_MAX_LIVE_CERTIFICATES = 16
"""A site that asks for more within one lifetime is broken; its rows must not fill the database."""


class ProvedBy(StrEnum):
    """How a site showed who it is."""

    CERTIFICATE = "certificate"
    SIGNING_KEY = "signing-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalRequest:
    """What a site sends. Nothing in it is believed before it is checked."""

    tls_csr_der: bytes
    statement: SignedBody
    agent_version: str
    trusted_roots_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteNews:
    """What a site is told each time that it says something."""

    trusted_roots: SignedBody
    enrolment_address: str
    counter_floor: int
    check_in_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """A renewal's answer."""

    site_id: SiteId
    certificate_pem: bytes
    news: SiteNews


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    standing: Standing
    floor: int
    pem: bytes = b""


def challenge_renewal(resources: Resources, *, client_nonce: bytes, signing_key_sha256: bytes) -> SignedBody:
    """A fresh challenge for whoever holds this signing key; nothing is kept, and nothing is told of whose it is.

    Raises:
        RequestInvalidError: a part has another length than it must.
    """
    if len(client_nonce) != NONCE_BYTES or len(signing_key_sha256) != hashlib.sha256().digest_size:
        raise RequestInvalidError("a challenge is asked for with 32 random bytes and a key's SHA-256")
    listener = der_from_certificate(certificate_from_pem(resources.enrolment_certificate_pem))
    challenge = RenewalChallenge(
        client_nonce=client_nonce,
        server_nonce=secrets.token_bytes(NONCE_BYTES),
        signing_key_sha256=Sha256Hex(signing_key_sha256.hex()),
        listener_sha256=Sha256Hex(hashlib.sha256(listener).hexdigest()),
        expires_at=resources.now() + _CHALLENGE_LIVES,
    )
    return sign_challenge(resources.signer, challenge)


def renew_by_signing_key(
    resources: Resources, request: RenewalRequest, *, challenge: SignedBody, signature: bytes
) -> Renewed:
    """Renew for a site whose certificate has ended.

    Raises:
        RenewalChallengeError: the challenge is not ours, or was answered too late.
        PossessionUnprovenError: no site has the key, or it did not sign this challenge and statement.
        SiteNotActiveError, SiteClonedError, StatementInvalidError, CertificateRequestInvalidError: see below.
    """
    try:
        asked = verify_challenge(resources.signer.spki_der, challenge)
    except ProtocolError as error:
        raise RenewalChallengeError("the challenge is not this coordinator's; ask for another") from error
    if asked.expires_at <= resources.now():
        raise RenewalChallengeError("the challenge has expired; ask for another")

    def find(session: Session) -> tuple[str, bytes] | None:
        query = select(models.Site).where(models.Site.signing_key_sha256 == asked.signing_key_sha256)
        site = session.scalars(query).one_or_none()
        return None if site is None or site.signing_spki is None else (site.site_id, site.signing_spki)

    found = resources.db.read("find_site_by_key", find)
    if found is None:
        raise PossessionUnprovenError("no site has this signing key; ask the consortium's admin for an enrolment code")
    site_id, spki = found
    try:
        verify_proof(spki, challenge=challenge, statement=request.statement, signature=signature)
    except (SignatureInvalidError, SigningKeyInvalidError) as error:
        raise PossessionUnprovenError("the signing key did not sign this challenge and statement") from error
    return renew_certificate(resources, SiteId(site_id), request, by=ProvedBy.SIGNING_KEY)


def renew_certificate(
    resources: Resources, site_id: SiteId, request: RenewalRequest, *, by: ProvedBy = ProvedBy.CERTIFICATE
) -> Renewed:
    """Issue the next certificate of a site that has shown who it is, and still has to show that it is one.

    Raises:
        SiteNotActiveError: it is suspended or revoked.
        StatementInvalidError: the statement is not the site's, or not over this request.
        CertificateRequestInvalidError: the request is malformed, or asks for the signing key as TLS key.
        SiteClonedError: another copy of the site has said something else; the site is suspended.
    """
    key = read_csr(request.tls_csr_der)
    statement, spki = _statement_of(resources, site_id, request.statement)
    if statement.csr_sha256 != hashlib.sha256(request.tls_csr_der).hexdigest():
        raise StatementInvalidError("the statement is not over this certificate request", site_id=site_id)
    if spki_from_public_key(key) == spki:
        raise CertificateRequestInvalidError("the TLS key and the signing key must be two keys")
    now, key_sha256 = resources.now(), key_fingerprint(key)
    issued = resources.authority.issue_site_certificate(
        site_id=site_id, csr_der=request.tls_csr_der, now=now, lifetime=timedelta(seconds=resources.site_lifetime_s)
    )

    def renew(session: Session) -> _Outcome:
        site = _active_site(session, site_id)
        standing = note_statement(session, site, statement, now=now)
        floor = site.statement_floor or 0
        if standing is Standing.FORKED:
            return _Outcome(standing=standing, floor=floor)
        site.trusted_roots_version = _known_version(request.trusted_roots_version)
        held = _held_certificate(session, site_id, key_sha256, issued, now=now)
        if held is None:
            record_certificate(session, site_id, issued)
            session.flush()
            facts = {
                "site_id": site_id,
                "certificate_sha256": issued.sha256,
                "not_after": issued.not_after.isoformat(),
                "root_sha256": issued.root_sha256,
                "by": by.value,
                "counter": statement.counter,
                "agent_version": request.agent_version[:64],
            }
            append_audit(session, AuditKind.CERTIFICATE_RENEWED, actor=f"site:{site_id}", facts=facts, now=now)
        return _Outcome(standing=standing, floor=floor, pem=held or issued.pem)

    outcome = resources.db.run_tx("renew_certificate", renew)
    _refuse_fork(resources, site_id, statement, outcome)
    return Renewed(site_id=site_id, certificate_pem=outcome.pem, news=news_for_site(resources, outcome.floor))


def check_in(
    resources: Resources, site_id: SiteId, signed: SignedBody, *, agent_version: str, trusted_roots_version: int = 0
) -> SiteNews:
    """Hear that a process of a site is there.

    Raises:
        SiteNotActiveError, StatementInvalidError, SiteClonedError: as in ``renew_certificate``.
    """
    statement, _ = _statement_of(resources, site_id, signed)
    if statement.kind is SiteStatementKind.RENEW:
        raise StatementInvalidError("a renewal is asked for by another call", site_id=site_id)
    now = resources.now()

    def note(session: Session) -> _Outcome:
        site = _active_site(session, site_id)
        standing = note_statement(session, site, statement, now=now)
        if standing is not Standing.FORKED:
            site.agent_version = agent_version[:64] or site.agent_version
            site.trusted_roots_version = _known_version(trusted_roots_version)
        return _Outcome(standing=standing, floor=site.statement_floor or 0)

    outcome = resources.db.run_tx("check_in", note)
    _refuse_fork(resources, site_id, statement, outcome)
    return news_for_site(resources, outcome.floor)


def news_for_site(resources: Resources, floor: int) -> SiteNews:
    """What a site is told."""
    authority = resources.authority
    roots = TrustedRoots(origin=resources.origin, version=authority.slots.version, roots=authority.trusted_der)
    return SiteNews(
        trusted_roots=sign_roots(resources.signer, roots),
        enrolment_address=resources.addresses.enrolment,
        counter_floor=floor,
        check_in_after_s=resources.check_in_s,
    )


def record_certificate(session: Session, site_id: str, issued: IssuedCertificate) -> None:
    """Write down a certificate: from now on its holder is known by it."""
    session.add(
        models.Certificate(
            fingerprint_sha256=issued.sha256,
            site_id=site_id,
            serial=issued.serial,
            not_before=issued.not_before,
            not_after=issued.not_after,
            revoked_at=None,
            pem=issued.pem,
            key_sha256=issued.key_sha256,
            root_sha256=issued.root_sha256,
            first_used_at=None,
            superseded_at=None,
        )
    )


def _known_version(told: int) -> int:
    """What a site says that it believes, as the database can hold it."""
    return min(told, 2**63 - 1)


def _statement_of(resources: Resources, site_id: SiteId, signed: SignedBody) -> tuple[SiteStatement, bytes | None]:
    def key(session: Session) -> bytes | None:
        return session.scalar(select(models.Site.signing_spki).where(models.Site.site_id == site_id))

    spki = resources.db.read("signing_key_of_site", key)
    return verified_statement(spki, signed, site_id=site_id), spki


def _active_site(session: Session, site_id: str) -> models.Site:
    site = session.get(models.Site, site_id, with_for_update=True)
    if site is None or site.state != SiteState.ENROLLED.value:
        state = "unknown" if site is None else site.state
        raise SiteNotActiveError(f"this site is {state}; ask the consortium's admin", site_id=site_id, state=state)
    return site


def _held_certificate(
    session: Session, site_id: str, key_sha256: str, issued: IssuedCertificate, *, now: datetime
) -> bytes | None:
    """The certificate that this key got before, where it is as good as a new one."""
    query = select(models.Certificate).where(
        models.Certificate.site_id == site_id,
        models.Certificate.revoked_at.is_(None),
        models.Certificate.superseded_at.is_(None),
        models.Certificate.not_after > now,
    )
    live = session.scalars(query).all()
    half = (issued.not_after - now) / 2
    for row in live:
        if row.key_sha256 == key_sha256 and row.root_sha256 == issued.root_sha256 and row.not_after - now > half:
            return row.pem
    if len(live) >= _MAX_LIVE_CERTIFICATES:
        raise RequestInvalidError("this site has too many certificates that it does not use", n_live=len(live))
    return None


def _refuse_fork(resources: Resources, site_id: str, statement: SiteStatement, outcome: _Outcome) -> None:
    if outcome.standing is not Standing.FORKED:
        return
    resources.forget_identities()
    resources.wake_driver()
    raise SiteClonedError(
        "another copy of this site's state folder is in use; stop both, and call the consortium's admin",
        site_id=site_id,
        counter=statement.counter,
        floor=outcome.floor,
    )
