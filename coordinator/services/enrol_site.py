"""A site shows its code and its keys and gets its certificate, in the invitation's name and never the request's."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.ca.authority import GATEWAY_SERVER_NAME, UNRENEWED_SITE_LIFETIME
from coordinator.ca.enrolment import is_same_digest, secret_digest, verify_possession
from coordinator.db import models
from coordinator.db.audit import append_audit
from coordinator.db.states import SiteState
from coordinator.errors import SiteNotActiveError
from coordinator.services.refusals import (
    EnrolmentCodeExpiredError,
    EnrolmentCodeSpentError,
    EnrolmentCodeUnknownError,
    PossessionUnprovenError,
    SigningKeyInUseError,
)
from coordinator.services.renew_certificate import record_certificate
from coordinator.services.resources import Resources
from coordinator.services.site_statements import forget_statements
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import SiteId
from fl_protocol.pki.csr import read_csr
from fl_protocol.pki.errors import CertificateRequestInvalidError
from fl_protocol.pki.keys import spki_from_public_key
from fl_protocol.signing.keys import SignatureInvalidError, SigningKeyInvalidError, spki_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """What a site sends. Nothing in it is believed before it is checked."""

    code_secret: bytes = field(repr=False)
    tls_csr_der: bytes
    signing_spki_der: bytes
    possession_signature: bytes
    agent_version: str
    renews: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What the site gets: its name, its certificate, and whom it may trust."""

    site_id: SiteId
    certificate_pem: bytes
    root_pem: bytes
    gateway_address: str
    gateway_server_name: str
    coordinator_signing_spki_der: bytes
    fallback_address: str


def enrol_site(resources: Resources, request: EnrolmentRequest) -> Enrolled:
    """Check the code and both keys, issue the certificate, record who the site is.

    The same code with the same signing key is answered again while the code lives, so that a lost answer costs nothing.

    Raises:
        EnrolmentCodeUnknownError, EnrolmentCodeSpentError, EnrolmentCodeExpiredError: the code opens nothing.
        PossessionUnprovenError: the signing key did not sign this code and request.
        CertificateRequestInvalidError: the request is malformed, or asks for the signing key as TLS key.
        SigningKeyInUseError: another site has this signing key.
        SiteNotActiveError: the site was suspended or revoked since.
    """
    now = resources.now()
    key_sha256 = spki_fingerprint(request.signing_spki_der)
    code_sha256 = secret_digest(request.code_secret)

    def check(session: Session) -> SiteId:
        return SiteId(_open_code(session, code_sha256, key_sha256=key_sha256, now=now).site_id)

    site_id = resources.db.read("check_enrolment_code", check)
    _check_keys(request)
    lifetime = timedelta(seconds=resources.site_lifetime_s) if request.renews else UNRENEWED_SITE_LIFETIME
    certificate = resources.authority.issue_site_certificate(
        site_id=site_id, csr_der=request.tls_csr_der, now=now, lifetime=lifetime
    )

    def enrol(session: Session) -> None:
        code = _open_code(session, code_sha256, key_sha256=key_sha256, now=now)
        _record_site(session, code.site_id, request=request, key_sha256=key_sha256, now=now)
        record_certificate(session, code.site_id, certificate)
        code.used_at = code.used_at or now
        code.used_by_key_sha256 = key_sha256
        session.flush()
        facts = {
            "site_id": code.site_id,
            "signing_key_sha256": key_sha256,
            "certificate_sha256": certificate.sha256,
            "not_after": certificate.not_after.isoformat(),
            "agent_version": request.agent_version[:64],
        }
        append_audit(session, AuditKind.SITE_ENROLLED, actor=f"site:{code.site_id}", facts=facts, now=now)

    resources.db.run_tx("enrol_site", enrol)
    resources.wake_driver()
    return Enrolled(
        site_id=site_id,
        certificate_pem=certificate.pem,
        root_pem=resources.authority.root_pem,
        gateway_address=resources.addresses.gateway,
        gateway_server_name=GATEWAY_SERVER_NAME,
        coordinator_signing_spki_der=resources.signer.spki_der,
        fallback_address=resources.addresses.fallback,
    )


def _open_code(session: Session, code_sha256: str, *, key_sha256: str, now: datetime) -> models.EnrolmentCode:
    # The index finds a digest, not the secret, and the comparison is constant in time: the clock tells nothing of it.
    code = session.get(models.EnrolmentCode, code_sha256)
    if code is None or not is_same_digest(code.code_sha256, code_sha256):
        raise EnrolmentCodeUnknownError("this enrolment code is not known; ask the consortium's admin for another")
    if code.used_at is not None and code.used_by_key_sha256 != key_sha256:
        raise EnrolmentCodeSpentError("this enrolment code has been used or replaced; ask for another")
    if code.expires_at <= now:
        raise EnrolmentCodeExpiredError(
            "this enrolment code has expired; ask for another", expired_at=code.expires_at.isoformat()
        )
    return code


def _check_keys(request: EnrolmentRequest) -> None:
    try:
        verify_possession(
            secret=request.code_secret,
            csr_der=request.tls_csr_der,
            signing_spki_der=request.signing_spki_der,
            signature=request.possession_signature,
        )
    except (SignatureInvalidError, SigningKeyInvalidError) as error:
        raise PossessionUnprovenError("the signing key did not sign this code and certificate request") from error
    if spki_from_public_key(read_csr(request.tls_csr_der)) == request.signing_spki_der:
        raise CertificateRequestInvalidError("the TLS key and the signing key must be two keys")


def _record_site(session: Session, site_id: str, *, request: EnrolmentRequest, key_sha256: str, now: datetime) -> None:
    holder = session.scalars(select(models.Site).where(models.Site.signing_key_sha256 == key_sha256)).one_or_none()
    if holder is not None and holder.site_id != site_id:
        raise SigningKeyInUseError("another site has this signing key; make new keys at this site")
    site = session.get(models.Site, site_id)
    if site is None or site.state not in (SiteState.INVITED.value, SiteState.ENROLLED.value):
        raise SiteNotActiveError("the site was suspended or revoked", site_id=site_id)
    if site.signing_key_sha256 != key_sha256:
        # Another key is another chain of statements, from its first one.
        forget_statements(session, site_id)
        site.statement_floor = None
    site.state = SiteState.ENROLLED.value
    site.signing_spki = request.signing_spki_der
    site.signing_key_sha256 = key_sha256
    site.agent_version = request.agent_version[:64]
    site.enrolled_at = site.enrolled_at or now
