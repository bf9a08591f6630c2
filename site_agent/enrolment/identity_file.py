"""Who this site is, as its coordinator answered at enrolment: nothing secret, written last, read at every start."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex, SiteId, sha256_hex_from_text, site_id_from_text
from fl_protocol.pki.tls import certificate_from_der, pem_from_certificate
from fl_protocol.signing.keys import public_key_from_spki
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.trusted_roots import TrustedRoots, verify_roots
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.durable_files import write_whole
from site_agent.enrolment.errors import EnrolmentAnswerError, NotEnrolledError
from site_agent.enrolment.keystore import CERTIFICATE_BEGINS
from site_agent.folder import SiteFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """What a site was told at enrolment, and pins from then on.

    Attributes:
        gateway_address: ``host:port`` to dial.
        gateway_server_name: the name in the gateway's certificate.
        fallback_address: ``host:port`` of the gateway over HTTP/1.1; None where enrolment named none.
        coordinator_signing_spki: the key that signs M0, receipts and results.
        certificate_pem: this site's certificate, and behind it those between it and its root.
        root_pem: the roots that are believed; one, but while a root is replaced.
        root_sha256: SHA-256 of the root (DER) above this site's certificate, as it was told last.
        trusted_roots_version: of the coordinator's word on its roots; 0 for what enrolment told.
        enrolment_address: ``host:port`` where this site enrolled, and recovers; None where that is not known.
    """

    site_id: SiteId
    gateway_address: str
    gateway_server_name: str
    signing_key_sha256: Sha256Hex
    coordinator_signing_spki: bytes
    certificate_pem: bytes
    root_pem: bytes
    root_sha256: Sha256Hex
    enrolled_at: datetime
    fallback_address: str | None = None
    enrolment_address: str | None = None
    trusted_roots_version: int = 0


def save_identity(folder: SiteFolder, identity: SiteIdentity) -> None:
    """Write certificates, then the identity that makes them count. Raises OSError."""
    folder.certs_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(folder.certificate, identity.certificate_pem, mode=0o644)
    write_whole(folder.root_certificate, identity.root_pem, mode=0o644)
    write_identity_document(folder, identity)


def write_identity_document(folder: SiteFolder, identity: SiteIdentity) -> None:
    """Write the identity beside certificates that are there. Raises OSError."""
    document = {
        "site_id": identity.site_id,
        "gateway_address": identity.gateway_address,
        "gateway_server_name": identity.gateway_server_name,
        "signing_key_sha256": identity.signing_key_sha256,
        "coordinator_signing_spki": base64.b64encode(identity.coordinator_signing_spki).decode("ascii"),
        "root_sha256": identity.root_sha256,
        "enrolled_at": instant_text(identity.enrolled_at),
    }
    if identity.fallback_address is not None:
        document["fallback_address"] = identity.fallback_address
    if identity.enrolment_address is not None:
        document["enrolment_address"] = identity.enrolment_address
    write_whole(folder.identity, (json.dumps(document, indent=2) + "\n").encode(), mode=0o644)


def is_enrolled(folder: SiteFolder) -> bool:
    """Whether this folder has an identity."""
    return folder.identity.exists()


def load_identity(folder: SiteFolder) -> SiteIdentity:
    """Read the identity.

    Raises:
        NotEnrolledError: there is none.
        EnrolmentAnswerError: the file is damaged.
    """
    try:
        document = json.loads(folder.identity.read_bytes())
        certificate_pem = read_certificate_pem(folder)
        root_pem = folder.root_certificate.read_bytes()
    except FileNotFoundError as error:
        advice = (
            "If it is another folder, name that: --state-dir DIR, or WARDROUND_STATE_DIR. Else ask the coordinator's "
            "admin for an enrolment code, then run 'wardround-site enrol'."
        )
        raise NotEnrolledError("no site has enrolled in this folder", advice=advice, folder=str(folder.root)) from error
    except (OSError, ValueError) as error:
        raise _damaged() from error
    if not isinstance(document, dict):
        raise _damaged()
    texts = {key: value for key, value in document.items() if isinstance(value, str)}
    try:
        spki = base64.b64decode(texts["coordinator_signing_spki"], validate=True)
        public_key_from_spki(spki)
        learnt = read_trusted_roots(folder, spki)
        return SiteIdentity(
            site_id=site_id_from_text(texts["site_id"]),
            gateway_address=texts["gateway_address"],
            gateway_server_name=texts["gateway_server_name"],
            signing_key_sha256=sha256_hex_from_text(texts["signing_key_sha256"]),
            coordinator_signing_spki=spki,
            certificate_pem=certificate_pem,
            root_pem=root_pem if learnt is None else roots_pem(learnt),
            root_sha256=sha256_hex_from_text(texts["root_sha256"]),
            enrolled_at=instant_from_text(texts["enrolled_at"]),
            fallback_address=texts.get("fallback_address"),
            enrolment_address=texts.get("enrolment_address"),
            trusted_roots_version=0 if learnt is None else learnt.version,
        )
    except (KeyError, ValueError, binascii.Error, ProtocolError) as error:
        raise _damaged() from error


def read_certificate_pem(folder: SiteFolder) -> bytes:
    """The certificate in use, with what stands above it: that of the last renewal, or of enrolment. Raises OSError."""
    if folder.tls_identity.exists():
        _, begins, rest = folder.tls_identity.read_bytes().partition(CERTIFICATE_BEGINS)
        return begins + rest
    return folder.certificate.read_bytes()


def read_trusted_roots(folder: SiteFolder, coordinator_spki: bytes) -> TrustedRoots | None:
    """The roots that the coordinator named last; None where it never did.

    Raises:
        ProtocolError, ValueError, KeyError: the file was altered, or is none.
    """
    try:
        document = json.loads(folder.trusted_roots.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(document, dict):
        raise _damaged()
    signed = SignedBody(
        body=base64.b64decode(document["body"], validate=True),
        signature=base64.b64decode(document["signature"], validate=True),
    )
    # Whoever can write to this file cannot make this site believe another root.
    return verify_roots(coordinator_spki, signed)


def write_trusted_roots(folder: SiteFolder, signed: SignedBody) -> None:
    """Keep a list of roots whose signature was checked. Raises OSError."""
    document = {
        "body": base64.b64encode(signed.body).decode("ascii"),
        "signature": base64.b64encode(signed.signature).decode("ascii"),
    }
    write_whole(folder.trusted_roots, (json.dumps(document) + "\n").encode(), mode=0o644)


def roots_pem(roots: TrustedRoots) -> bytes:
    """The roots in PEM. Raises CertificateInvalidError."""
    return b"".join(pem_from_certificate(certificate_from_der(der)) for der in roots.roots)


def _damaged() -> EnrolmentAnswerError:
    advice = "Restore the certs folder from this site's own backup."
    return EnrolmentAnswerError("the site's identity file is damaged", advice=advice)
