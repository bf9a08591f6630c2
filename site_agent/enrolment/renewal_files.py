"""A renewal on the disk, step by step, so that a crash at any point strands nobody.

1. ``begin_renewal``: a fresh key, then what is asked for it, word for word; both are taken up again after a crash.
2. ``keep_renewed``: key and certificate in one file, by one rename; what was in use before stays beside it.
3. ``confirm_renewed``: the coordinator admitted the new certificate: what was before is erased.
Or ``fall_back``: it did not know it (it was restored from a backup, say), and knows the one before.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.errors import ProtocolError
from fl_protocol.pki.csr import make_csr, read_csr
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key, private_key_from_pem
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import SiteStatementKind
from site_agent.durable_files import write_whole
from site_agent.enrolment.identity_file import read_certificate_pem
from site_agent.enrolment.keystore import KeyStore
from site_agent.enrolment.statement_book import StatementBook
from site_agent.folder import SiteFolder
from site_agent.state.private_files import erase_file


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRenewal:
    """What is asked, and the key that it is asked for. Its repr shows no key."""

    key: ec.EllipticCurvePrivateKey
    csr_der: bytes
    statement: SignedBody

    def __repr__(self) -> str:
        """Say nothing of it."""
        return "PendingRenewal()"


def begin_renewal(folder: SiteFolder, book: StatementBook) -> PendingRenewal:
    """The renewal that a crash or a lost answer left, or a new one with a fresh key. Raises OSError."""
    held = pending_renewal(folder)
    if held is not None:
        return held
    key = generate_private_key()
    write_whole(folder.next_tls_key, pem_from_private_key(key), mode=0o600)
    csr_der = make_csr(key)
    statement = book.next_statement(SiteStatementKind.RENEW, csr_der=csr_der)
    parts = {"csr": csr_der, "body": statement.body, "signature": statement.signature}
    document = {name: base64.b64encode(part).decode("ascii") for name, part in parts.items()}
    write_whole(folder.renewal, (json.dumps(document) + "\n").encode(), mode=0o600)
    return PendingRenewal(key=key, csr_der=csr_der, statement=statement)


def pending_renewal(folder: SiteFolder) -> PendingRenewal | None:
    """A renewal that was begun and not finished; None where there is none, or what is left of it is of no use."""
    try:
        key = private_key_from_pem(folder.next_tls_key.read_bytes())
        document = json.loads(folder.renewal.read_bytes())
        csr_der, body, signature = (
            base64.b64decode(document[name], validate=True) for name in ("csr", "body", "signature")
        )
        is_in_use = KeyStore(folder).load_tls_key().public_key() == key.public_key()
        if is_in_use or read_csr(csr_der) != key.public_key():
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, ProtocolError):
        # A power cut between two files: the key was sent to nobody, and another one is as good.
        return None
    return PendingRenewal(key=key, csr_der=csr_der, statement=SignedBody(body=body, signature=signature))


def drop_renewal(folder: SiteFolder) -> None:
    """Forget what was asked; the next attempt is another key."""
    folder.renewal.unlink(missing_ok=True)
    erase_file(folder.next_tls_key)


def keep_renewed(folder: SiteFolder, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> None:
    """Put the new key and certificate into use. Raises OSError; the old ones are then in use still."""
    current = KeyStore(folder).load_tls_key()
    if current.public_key() != key.public_key():
        before = pem_from_private_key(current) + read_certificate_pem(folder)
        write_whole(folder.previous_tls_identity, before, mode=0o600)
    write_whole(folder.tls_identity, pem_from_private_key(key) + certificate_pem, mode=0o600)
    # For people who look into the folder; what counts is the file above.
    write_whole(folder.certificate, certificate_pem, mode=0o644)
    drop_renewal(folder)


def confirm_renewed(folder: SiteFolder) -> None:
    """Erase the key that was in use before the one that the coordinator has admitted. Raises OSError."""
    if folder.tls_identity.exists():
        erase_file(folder.tls_key)
    erase_file(folder.previous_tls_identity)


def fall_back(folder: SiteFolder) -> bool:
    """Use again what was in use before; whether there is anything. Raises OSError."""
    if not folder.previous_tls_identity.exists():
        return False
    folder.previous_tls_identity.replace(folder.tls_identity)
    write_whole(folder.certificate, read_certificate_pem(folder), mode=0o644)
    return True
