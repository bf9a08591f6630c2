"""Enrolment, step by step: judge the listener by the code, make keys, ask, check the answer, and only then keep it.

1. The listener's certificate must be the one that the code names; else nothing is sent.
2. Keys are made here, or those of an attempt whose answer was lost are taken again.
3. The secret and two public keys travel, with a proof that the site holds both private ones.
4. The answer must fit the keys, and the root must be the one the operator was told, if he was.
5. The record comes before the identity: no record, no action.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex, site_id_from_text
from fl_protocol.packing import pack
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.errors import CertificateInvalidError
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_pem, pem_from_certificate, verify_site_chain
from fl_protocol.signing.keys import Signer, public_key_from_spki, spki_fingerprint
from fl_protocol.signing.signed import sign_body
from site_agent.durable_files import write_whole
from site_agent.enrolment.code import EnrolmentCode
from site_agent.enrolment.errors import (
    AlreadyEnrolledError,
    EnrolmentAnswerError,
    EnrolmentInputError,
    ListenerCertificateError,
    RootFingerprintError,
)
from site_agent.enrolment.identity_file import SiteIdentity, is_enrolled, load_identity, save_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.listener import EnrolmentAnswer, EnrolmentListener, EnrolmentRequest
from site_agent.enrolment.templates import POLICY_YAML, site_yaml
from site_agent.folder import SiteFolder

POSSESSION_KIND = "WR/sig/enrolment"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyChoice:
    """The proxy that was typed, to be kept; None where nothing was, and the environment decides."""

    url: str | None = None
    credentials_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentOrder:
    """What the operator typed."""

    coordinator_address: str
    code: EnrolmentCode
    root_fingerprint: Sha256Hex | None
    agent_version: str
    proxy: ProxyChoice = ProxyChoice()


def fingerprint_from_text(text: str) -> Sha256Hex:
    """A SHA-256 fingerprint as people write it: with or without colons, blanks, prefix and capitals.

    Raises:
        EnrolmentInputError: it is none.
    """
    plain = "".join(text.lower().removeprefix("sha256:").replace(":", "").split())
    if _FINGERPRINT.fullmatch(plain) is None:
        advice = "Copy the 64 characters from the invitation; colons do not matter."
        raise EnrolmentInputError("this is no SHA-256 fingerprint", advice=advice)
    return Sha256Hex(plain)


def enrol_site(
    folder: SiteFolder,
    order: EnrolmentOrder,
    *,
    listener: EnrolmentListener,
    now: datetime,
    record: Callable[[SiteIdentity, Signer], None],
) -> SiteIdentity:
    """Enrol this folder as a site. Repeating it after a lost answer sends the same keys and code again.

    Args:
        folder: the state folder; may be empty or hold the keys of an earlier attempt.
        order: what the operator typed.
        listener: the coordinator's listener.
        now: the present instant.
        record: writes the audit event; what it raises stops the enrolment before the identity is kept.

    Raises:
        EnrolmentError: see the classes; each carries advice.
    """
    if is_enrolled(folder):
        enrolled = load_identity(folder)
        advice = "Use another --state-dir for another site; 'wardround-site identity show' shows this one."
        raise AlreadyEnrolledError("this folder is enrolled", advice=advice, site_id=enrolled.site_id)
    certificate_der = listener.fetch_certificate(order.coordinator_address)
    if not order.code.names_certificate(certificate_der):
        message = "the listener at this address is not the one that made the code; the code was not sent"
        advice = (
            "Check the address. If it is right, something between this site and the coordinator opens the connection "
            "(a TLS-inspecting proxy?), or the coordinator's listener is new: then ask for a new code."
        )
        raise ListenerCertificateError(message, advice=advice, address=order.coordinator_address)
    keys = KeyStore(folder)
    keys.ensure_keys()
    signer = keys.load_signer()
    tls_key = keys.load_tls_key()
    answer = listener.enrol(order.coordinator_address, certificate_der, _request(order, signer, tls_key))
    identity = _identity_from_answer(answer, order=order, signer=signer, tls_key=tls_key, now=now)
    write_first_files(folder, identity, proxy=order.proxy)
    record(identity, signer)
    save_identity(folder, identity)
    return identity


def write_first_files(folder: SiteFolder, identity: SiteIdentity, *, proxy: ProxyChoice) -> None:
    """Leave a commented configuration and a policy that permits nothing; files that are there stay as they are."""
    if not folder.site_yaml.exists():
        file = None if proxy.credentials_file is None else str(proxy.credentials_file.absolute())
        text = site_yaml(
            site_id=identity.site_id,
            gateway_address=identity.gateway_address,
            proxy=proxy.url,
            proxy_credentials_file=file,
        )
        write_whole(folder.site_yaml, text.encode(), mode=0o644)
    if not folder.policy_yaml.exists():
        write_whole(folder.policy_yaml, POLICY_YAML.encode(), mode=0o644)


def possession_body(code_secret: bytes, tls_csr_der: bytes) -> bytes:
    """What the signing key signs to prove that one site holds both keys: ``pack(SHA-256(secret), CSR)``."""
    return pack(hashlib.sha256(code_secret).digest(), tls_csr_der)


def _request(order: EnrolmentOrder, signer: Signer, tls_key: ec.EllipticCurvePrivateKey) -> EnrolmentRequest:
    csr_der = make_csr(tls_key)
    body = possession_body(order.code.secret, csr_der)
    return EnrolmentRequest(
        code_secret=order.code.secret,
        tls_csr_der=csr_der,
        signing_spki_der=signer.spki_der,
        possession_signature=sign_body(signer, POSSESSION_KIND, body).signature,
        agent_version=order.agent_version,
    )


def _identity_from_answer(
    answer: EnrolmentAnswer,
    *,
    order: EnrolmentOrder,
    signer: Signer,
    tls_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> SiteIdentity:
    try:
        site_id = site_id_from_text(answer.site_id)
        roots = x509.load_pem_x509_certificates(answer.root_pem)
        certificate = certificate_from_pem(answer.certificate_pem)
        public_key_from_spki(answer.coordinator_signing_spki_der)
        named = site_id_from_certificate(certificate)
    except (ProtocolError, ValueError) as error:
        raise _answer_error("the coordinator's answer cannot be read") from error
    try:
        _, root = verify_site_chain(answer.certificate_pem, roots)
    except CertificateInvalidError as error:
        raise _answer_error("the certificate is not issued by the root that came with it") from error
    root_sha256 = certificate_fingerprint(root)
    if order.root_fingerprint not in {None, root_sha256}:
        message = "the coordinator's root certificate is not the one you were told; nothing was kept"
        advice = (
            "Compare the fingerprint with the coordinator's admin by telephone. Do not go on before it is the same."
        )
        raise RootFingerprintError(message, advice=advice, found=root_sha256)
    if certificate.public_key() != tls_key.public_key():
        raise _answer_error("the certificate is for another key than this site's")
    if named != site_id:
        raise _answer_error("the certificate is for another site than the answer names")
    if not answer.gateway_address or not answer.gateway_server_name:
        raise _answer_error("the answer does not say where the gateway is")
    return SiteIdentity(
        site_id=site_id,
        gateway_address=answer.gateway_address,
        gateway_server_name=answer.gateway_server_name,
        signing_key_sha256=spki_fingerprint(signer.spki_der),
        coordinator_signing_spki=answer.coordinator_signing_spki_der,
        certificate_pem=answer.certificate_pem,
        root_pem=pem_from_certificate(root),
        root_sha256=root_sha256,
        enrolled_at=now,
        fallback_address=answer.fallback_address or None,
        enrolment_address=order.coordinator_address,
    )


def _answer_error(message: str) -> EnrolmentAnswerError:
    advice = "Nothing was kept. Show this to the coordinator's admin; the same command may be repeated."
    return EnrolmentAnswerError(message, advice=advice)
