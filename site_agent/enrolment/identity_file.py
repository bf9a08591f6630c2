"""Who this site is, as its coordinator answered at enrolment: nothing secret, written last, read at every start."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex, SiteId, sha256_hex_from_text, site_id_from_text
from fl_protocol.signing.keys import public_key_from_spki
from site_agent.db.instants import instant_from_text, instant_text
from site_agent.durable_files import write_whole
from site_agent.enrolment.errors import EnrolmentAnswerError, NotEnrolledError
from site_agent.folder import SiteFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """What a site was told at enrolment, and pins from then on.

    Attributes:
        gateway_address: ``host:port`` to dial.
        gateway_server_name: the name in the gateway's certificate.
        fallback_address: ``host:port`` of the gateway over HTTP/1.1; None where enrolment named none.
        coordinator_signing_spki: the key that signs M0, receipts and results.
        root_sha256: SHA-256 of the root certificate (DER) that issued this site's certificate.
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


def save_identity(folder: SiteFolder, identity: SiteIdentity) -> None:
    """Write certificates, then the identity that makes them count. Raises OSError."""
    folder.certs_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_whole(folder.certificate, identity.certificate_pem, mode=0o644)
    write_whole(folder.root_certificate, identity.root_pem, mode=0o644)
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
        certificate_pem, root_pem = folder.certificate.read_bytes(), folder.root_certificate.read_bytes()
    except FileNotFoundError as error:
        advice = "Ask the coordinator's admin for an enrolment code, then run 'wardround-site enrol'."
        raise NotEnrolledError("this site has not enrolled yet", advice=advice) from error
    except (OSError, ValueError) as error:
        raise _damaged() from error
    if not isinstance(document, dict):
        raise _damaged()
    texts = {key: value for key, value in document.items() if isinstance(value, str)}
    try:
        spki = base64.b64decode(texts["coordinator_signing_spki"], validate=True)
        public_key_from_spki(spki)
        return SiteIdentity(
            site_id=site_id_from_text(texts["site_id"]),
            gateway_address=texts["gateway_address"],
            gateway_server_name=texts["gateway_server_name"],
            signing_key_sha256=sha256_hex_from_text(texts["signing_key_sha256"]),
            coordinator_signing_spki=spki,
            certificate_pem=certificate_pem,
            root_pem=root_pem,
            root_sha256=sha256_hex_from_text(texts["root_sha256"]),
            enrolled_at=instant_from_text(texts["enrolled_at"]),
            fallback_address=texts.get("fallback_address"),
        )
    except (KeyError, ValueError, binascii.Error, ProtocolError) as error:
        raise _damaged() from error


def _damaged() -> EnrolmentAnswerError:
    advice = "Restore the certs folder from this site's own backup."
    return EnrolmentAnswerError("the site's identity file is damaged", advice=advice)
