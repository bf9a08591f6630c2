"""Keeping a site's identity alive: it says that it is there, renews its certificate, recovers it, learns new roots.

1. What is asked is on the disk before it leaves (``renewal_files``); asking again is asking the same.
2. It goes to the gateway under the certificate in use. Where that has ended or is not known, it goes to the enrolment
   listener: the signing key answers a challenge, once the pinned key of the coordinator has signed for the listener.
3. The answer must fit the key, the site's name and a root that the coordinator's pinned key vouches for.
4. The record comes before the switch: no record, no action. What was in use stays until the new one was admitted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from cryptography import x509

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.clock import Clock
from fl_protocol.errors import ProtocolError
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.tls import certificate_fingerprint, certificate_from_der, certificate_from_pem, verify_site_chain
from fl_protocol.secagg.entropy import Entropy
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.renewal import NONCE_BYTES, RenewalChallenge, proof_message, verify_challenge
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import SiteStatementKind
from fl_protocol.signing.trusted_roots import verify_roots
from site_agent.enrolment.errors import (
    EnrolmentAnswerError,
    EnrolmentRefusedError,
    EnrolmentUnreachableError,
    ListenerCertificateError,
    RecoveryAddressMissingError,
)
from site_agent.enrolment.identity_file import (
    SiteIdentity,
    load_identity,
    read_trusted_roots,
    roots_pem,
    write_identity_document,
    write_trusted_roots,
)
from site_agent.enrolment.renewal_files import (
    PendingRenewal,
    begin_renewal,
    confirm_renewed,
    drop_renewal,
    fall_back,
    keep_renewed,
)
from site_agent.enrolment.statement_book import StatementBook
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.folder import SiteFolder
from site_agent.link.identity_calls import IdentityCalls, RenewalAnswer, RenewalRequest, SiteNews

_UNKNOWN_CODES = frozenset({"certificate-unknown", "certificate-ended"})
_LAST_PART = 0.25
"""Of a certificate's life: when only so much is left and the gateway does not answer, the other listener is tried."""


class RecoveryListener(Protocol):
    """The coordinator's enrolment listener, as far as recovery goes. Blocking."""

    def fetch_certificate(self, address: str) -> bytes:
        """The certificate (DER) that answers there. Raises EnrolmentUnreachableError."""
        ...

    def challenge_renewal(
        self, address: str, certificate_der: bytes, *, client_nonce: bytes, signing_key_sha256: bytes
    ) -> SignedBody:
        """A challenge. Raises EnrolmentError."""
        ...

    def renew(self, address: str, certificate_der: bytes, request: RenewalRequest) -> RenewalAnswer:
        """The renewal. Raises EnrolmentError."""
        ...


class ProvedBy(StrEnum):
    """How this site showed who it is."""

    CERTIFICATE = "certificate"
    SIGNING_KEY = "signing-key"


Record = Callable[[AuditKind, dict[str, AuditFact]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalSeams:
    """What a renewal works with.

    Attributes:
        record: writes an audit event, durably, before it returns. Blocking.
        switch: lets the link use an identity from now on, without ending a call that is under way.
        recovery_address: what ``site.yaml`` says; None for what enrolment was told.
    """

    folder: SiteFolder
    signer: Signer
    clock: Clock
    entropy: Entropy
    calls: IdentityCalls
    listener: RecoveryListener
    record: Record
    switch: Callable[[SiteIdentity], None]
    agent_version: str
    recovery_address: str | None = None


class IdentityKeeper:
    """One site's identity while its agent runs. Invariant: one call at a time, by the holder of the folder's lock."""

    def __init__(self, seams: RenewalSeams, identity: SiteIdentity) -> None:
        """Start with the identity in the folder."""
        self._seams = seams
        self._identity = identity
        self._book = StatementBook(seams.folder, site_id=identity.site_id, signer=seams.signer, entropy=seams.entropy)

    @property
    def identity(self) -> SiteIdentity:
        """The identity in use."""
        return self._identity

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate in use."""
        return certificate_from_pem(self._identity.certificate_pem)

    @property
    def has_begun_renewal(self) -> bool:
        """Whether a renewal was begun, now or before the last start, and not ended."""
        return self._seams.folder.renewal.exists()

    async def check_in(self, kind: SiteStatementKind) -> float:
        """Say that this process is there; in how many seconds to say so again.

        Raises:
            LinkError: no answer, or a refusal (``site-cloned`` among them).
            EnrolmentAnswerError: the answer is not the coordinator's word.
        """
        statement = await asyncio.to_thread(self._book.next_statement, kind)
        news = await self._tell(statement)
        if await asyncio.to_thread(self._confirm, news):
            self._use(load_identity(self._seams.folder))
            # The coordinator waits for this word before it issues anything under a root that is new.
            await self._tell(await asyncio.to_thread(self._book.next_statement, SiteStatementKind.PRESENT))
        return news.check_in_after_s

    async def _tell(self, statement: SignedBody) -> SiteNews:
        return await self._seams.calls.check_in(
            statement,
            agent_version=self._seams.agent_version,
            trusted_roots_version=self._identity.trusted_roots_version,
        )

    async def renew(self) -> SiteIdentity:
        """Get a new certificate for a new key, put it into use, and hear that it was admitted.

        Raises:
            LinkError, EnrolmentError: it did not come to that; what is in use stays in use.
        """
        pending = await asyncio.to_thread(begin_renewal, self._seams.folder, self._book)
        try:
            answer, by = await self._ask(pending)
        except (CoordinatorRefusedError, EnrolmentRefusedError):
            # Asking the same again would be refused again; a key that was refused is used for nothing.
            await asyncio.to_thread(drop_renewal, self._seams.folder)
            raise
        renewed = await asyncio.to_thread(self._take, pending, answer, by)
        self._use(renewed)
        try:
            await self.check_in(SiteStatementKind.PRESENT)
        except CoordinatorRefusedError as refused:
            if refused.refusal_code in _UNKNOWN_CODES and await asyncio.to_thread(fall_back, self._seams.folder):
                self._use(load_identity(self._seams.folder))
            raise
        return self._identity

    def time_left(self, now: datetime) -> timedelta:
        """How long the certificate in use still lives; negative where it has ended."""
        return self.certificate.not_valid_after_utc - now

    async def _ask(self, pending: PendingRenewal) -> tuple[RenewalAnswer, ProvedBy]:
        request = RenewalRequest(
            csr_der=pending.csr_der,
            statement=pending.statement,
            agent_version=self._seams.agent_version,
            trusted_roots_version=self._identity.trusted_roots_version,
        )
        certificate, now = self.certificate, self._seams.clock.now()
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if self.time_left(now) <= timedelta():
            return await asyncio.to_thread(self._recover, request), ProvedBy.SIGNING_KEY
        try:
            return await self._seams.calls.renew(request), ProvedBy.CERTIFICATE
        except CoordinatorRefusedError as refused:
            if refused.refusal_code not in _UNKNOWN_CODES:
                raise
            return await asyncio.to_thread(self._recover, request), ProvedBy.SIGNING_KEY
        except CoordinatorUnavailableError as unavailable:
            if self.time_left(now) > life * _LAST_PART:
                raise
            try:
                return await asyncio.to_thread(self._recover, request), ProvedBy.SIGNING_KEY
            except (EnrolmentUnreachableError, RecoveryAddressMissingError) as error:
                raise unavailable from error

    def _recover(self, request: RenewalRequest) -> RenewalAnswer:
        """Ask at the enrolment listener, which has to prove itself by the coordinator's pinned key first."""
        seams = self._seams
        address = seams.recovery_address or self._identity.enrolment_address
        if not address:
            advice = (
                "Set coordinator.enrolment_address in site.yaml to the HOST:PORT where sites enrol, or ask the "
                "coordinator's admin."
            )
            raise RecoveryAddressMissingError("this site's certificate has ended", advice=advice)
        listener_der = seams.listener.fetch_certificate(address)
        nonce = seams.entropy.draw(NONCE_BYTES)
        key_sha256 = hashlib.sha256(seams.signer.spki_der).digest()
        signed = seams.listener.challenge_renewal(
            address, listener_der, client_nonce=nonce, signing_key_sha256=key_sha256
        )
        try:
            challenge = verify_challenge(self._identity.coordinator_signing_spki, signed)
        except ProtocolError as error:
            raise _stranger(address) from error
        if not _is_answer(challenge, nonce=nonce, key_sha256=key_sha256, listener_der=listener_der):
            raise _stranger(address)
        proof = seams.signer.sign(proof_message(signed, request.statement))
        return seams.listener.renew(
            address, listener_der, replace(request, challenge=signed, challenge_signature=proof)
        )

    def _take(self, pending: PendingRenewal, answer: RenewalAnswer, by: ProvedBy) -> SiteIdentity:
        """Check the answer, record it, and keep it."""
        folder = self._seams.folder
        self._learn_roots(answer.news)
        identity = load_identity(folder)
        try:
            leaf, root = verify_site_chain(answer.certificate_pem, x509.load_pem_x509_certificates(identity.root_pem))
            named = site_id_from_certificate(leaf)
        except (ProtocolError, ValueError) as error:
            raise _answer_error("the new certificate does not lead to a root that this site believes") from error
        if named != identity.site_id or answer.site_id != identity.site_id:
            raise _answer_error("the new certificate is for another site")
        if leaf.public_key() != pending.key.public_key():
            raise _answer_error("the new certificate is for another key than this site's")
        if leaf.not_valid_after_utc <= self._seams.clock.now():
            raise _answer_error("the new certificate has ended already; is this machine's clock right?")
        self._seams.record(
            AuditKind.CERTIFICATE_RENEWED,
            {
                "certificate_sha256": certificate_fingerprint(leaf),
                "not_after": leaf.not_valid_after_utc.isoformat(),
                "root_sha256": certificate_fingerprint(root),
                "by": by.value,
            },
        )
        keep_renewed(folder, pending.key, answer.certificate_pem)
        # What was typed at enrolment has worked; what the coordinator says may be an address of its own machine.
        known_at = identity.enrolment_address or answer.news.enrolment_address or None
        renewed = replace(
            identity,
            certificate_pem=answer.certificate_pem,
            root_sha256=certificate_fingerprint(root),
            enrolment_address=known_at,
        )
        write_identity_document(folder, renewed)
        return renewed

    def _confirm(self, news: SiteNews) -> bool:
        """The coordinator knows this site by what is in use; whether it named other roots."""
        self._book.note_floor(news.counter_floor)
        confirm_renewed(self._seams.folder)
        return self._learn_roots(news)

    def _learn_roots(self, news: SiteNews) -> bool:
        """Keep a later list of roots; whether there was one."""
        folder, spki = self._seams.folder, self._identity.coordinator_signing_spki
        try:
            named = verify_roots(spki, news.trusted_roots)
            pem = roots_pem(named)
            held = read_trusted_roots(folder, spki)
        except (ProtocolError, ValueError, KeyError) as error:
            raise _answer_error("the roots that came with the answer are not the coordinator's word") from error
        if held is not None and (named.origin != held.origin or named.version < held.version):
            raise _answer_error("the coordinator names roots that it had replaced, or those of another")
        if held is None and pem == self._identity.root_pem:
            # Nothing was ever changed, and what enrolment told stands.
            return False
        if held is not None and named.version == held.version:
            return False
        roots = ",".join(certificate_fingerprint(certificate_from_der(der)) for der in named.roots)
        self._seams.record(AuditKind.ROOTS_CHANGED, {"version": str(named.version), "roots_sha256": roots})
        write_trusted_roots(folder, news.trusted_roots)
        return True

    def _use(self, identity: SiteIdentity) -> None:
        self._identity = identity
        self._seams.switch(identity)


def renewal_instant(certificate: x509.Certificate, draw: float) -> datetime:
    """When to renew: at half of the certificate's life, earlier or later by up to a tenth of it.

    Args:
        certificate: in use.
        draw: 0 to 1, drawn once a certificate, so that sites that enrolled together do not come together.
    """
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + life * (0.4 + 0.2 * draw)


def _is_answer(challenge: RenewalChallenge, *, nonce: bytes, key_sha256: bytes, listener_der: bytes) -> bool:
    return (
        challenge.client_nonce == nonce
        and challenge.signing_key_sha256 == key_sha256.hex()
        and challenge.listener_sha256 == hashlib.sha256(listener_der).hexdigest()
    )


def _stranger(address: str) -> ListenerCertificateError:
    message = "the listener at this address is not this site's coordinator; nothing was signed for it"
    advice = "Check coordinator.enrolment_address, and whether something between opens the connection."
    return ListenerCertificateError(message, advice=advice, address=address)


def _answer_error(message: str) -> EnrolmentAnswerError:
    return EnrolmentAnswerError(message, advice="Nothing was changed. Show this to the coordinator's admin.")
