# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""A site renews by its certificate or by its signing key, loses answers, is copied, and is let in again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select

from coordinator.db.models import AuditRow, Certificate, SiteStatementRow
from coordinator.db.models import Site as SiteRow
from coordinator.errors import SiteNotActiveError
from coordinator.services.change_site_state import SiteChange, change_site_state
from coordinator.services.enrol_site import enrol_site
from coordinator.services.identify_site import SUPERSEDED_GRACE, identify_site
from coordinator.services.invite_site import invite_site
from coordinator.services.refusals import (
    CertificateEndedError,
    PossessionUnprovenError,
    RenewalChallengeError,
    RequestInvalidError,
    SiteClonedError,
    StatementInvalidError,
)
from coordinator.services.renew_certificate import (
    RenewalRequest,
    Renewed,
    challenge_renewal,
    check_in,
    renew_by_signing_key,
    renew_certificate,
)
from coordinator.services.show_sites import show_site
from coordinator.services.site_statements import forget_statements
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.ids import Sha256Hex, SiteId
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.errors import CertificateRequestInvalidError
from fl_protocol.pki.identity import site_id_from_certificate
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.signing.renewal import RenewalChallenge, proof_message, sign_challenge
from fl_protocol.signing.signed import SignedBody
from fl_protocol.signing.site_statement import (
    NO_STATEMENT,
    SiteStatement,
    SiteStatementKind,
    sign_site_statement,
)

SITE = SiteId("st-mary")


@dataclass
class Chain:
    """One state folder's chain of statements, written by hand."""

    signer: EcdsaSigner
    counter: int = 0
    last: Sha256Hex = NO_STATEMENT
    nonces: int = 0
    name: bytes = b"a"
    site_id: SiteId = SITE

    def copy(self) -> Chain:
        """What a copy of the folder would go on with."""
        return replace(self, name=self.name + b"'")

    def say(self, kind: SiteStatementKind = SiteStatementKind.PRESENT, *, csr: bytes | None = None) -> SignedBody:
        self.counter, self.nonces = self.counter + 1, self.nonces + 1
        statement = SiteStatement(
            site_id=self.site_id,
            kind=kind,
            counter=self.counter,
            previous_sha256=self.last,
            nonce=hashlib.sha256(self.name + bytes([self.nonces])).digest()[:16],
            csr_sha256=None if csr is None else Sha256Hex(hashlib.sha256(csr).hexdigest()),
        )
        self.last = statement.sha256
        return sign_site_statement(self.signer, statement)

    def renewal(self, csr: bytes | None = None) -> RenewalRequest:
        csr = csr or make_csr(generate_private_key())
        return RenewalRequest(
            tls_csr_der=csr, statement=self.say(SiteStatementKind.RENEW, csr=csr), agent_version="test"
        )


@dataclass
class Site:
    chain: Chain
    certificate_sha256: str = field(default="")


def sha256_of(pem: bytes) -> str:
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).hexdigest()


@pytest.fixture
def site(resources, new_keys) -> Site:
    keys = new_keys()
    request = replace(keys.request(invite_site(resources, name=SITE, actor="user:admin").code), renews=True)
    enrolled = enrol_site(resources, request)
    return Site(Chain(keys.signer), sha256_of(enrolled.certificate_pem))


def admit(resources, certificate_sha256: str) -> None:
    identify_site(resources, site_id=SITE, certificate_sha256=certificate_sha256)


def recorded(resources) -> list[AuditKind]:
    def read(session):  # noqa: ANN202
        return [
            event_from_bytes(row.body).event.kind for row in session.scalars(select(AuditRow).order_by(AuditRow.seq))
        ]

    return resources.db.read("audit", read)


def test_certificate_of_an_agent_that_renews_lives_seventy_two_hours_and_of_an_older_one_ninety_days(
    resources, clock, new_keys
) -> None:
    for name, renews, lives in (("new", True, timedelta(hours=72)), ("old", False, timedelta(days=90))):
        request = new_keys().request(invite_site(resources, name=name, actor="user:admin").code)
        pem = enrol_site(resources, replace(request, renews=renews)).certificate_pem
        assert x509.load_pem_x509_certificate(pem).not_valid_after_utc - clock.now() == lives


def test_renewal_is_in_the_site_s_name_for_the_new_key_and_the_old_one_works_until_it_is_used(
    resources, clock, site
) -> None:
    admit(resources, site.certificate_sha256)
    clock.move(hours=36)
    key = generate_private_key()
    renewed = renew_certificate(resources, SITE, site.chain.renewal(make_csr(key)))
    leaf = x509.load_pem_x509_certificate(renewed.certificate_pem)
    assert site_id_from_certificate(leaf) == SITE
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_after_utc - clock.now() == timedelta(hours=72)
    # Two-phase: as long as nobody used the new one, nothing ends.
    clock.move(hours=2)
    admit(resources, site.certificate_sha256)
    admit(resources, sha256_of(renewed.certificate_pem))
    # What was on its way when that happened is served still; afterwards it is told that it was replaced.
    admit(resources, site.certificate_sha256)
    clock.move(seconds=SUPERSEDED_GRACE.total_seconds())
    with pytest.raises(CertificateEndedError):
        admit(resources, site.certificate_sha256)
    admit(resources, sha256_of(renewed.certificate_pem))


def test_renewal_whose_answer_was_lost_gives_the_same_certificate_and_one_record(resources, site) -> None:
    request = site.chain.renewal()
    first = renew_certificate(resources, SITE, request)
    assert renew_certificate(resources, SITE, request).certificate_pem == first.certificate_pem
    assert recorded(resources).count(AuditKind.CERTIFICATE_RENEWED) == 1
    assert show_site(resources, SITE).state == "ENROLLED"


def test_renewal_that_was_made_before_weeks_offline_gets_a_certificate_that_lives(resources, clock, site) -> None:
    request = site.chain.renewal()
    renew_certificate(resources, SITE, request)
    clock.move(days=30)
    late = x509.load_pem_x509_certificate(renew_certificate(resources, SITE, request).certificate_pem)
    assert late.not_valid_after_utc > clock.now() + timedelta(hours=71)


def test_renewal_for_the_signing_key_or_with_another_s_word_is_refused(resources, site, new_keys) -> None:
    signing_csr = make_csr(site.chain.signer._private_key)
    with pytest.raises(CertificateRequestInvalidError):
        renew_certificate(resources, SITE, site.chain.renewal(signing_csr))
    stranger = Chain(new_keys().signer)
    with pytest.raises(StatementInvalidError):
        renew_certificate(resources, SITE, stranger.renewal())
    other_request = replace(site.chain.renewal(), tls_csr_der=make_csr(generate_private_key()))
    with pytest.raises(StatementInvalidError):
        renew_certificate(resources, SITE, other_request)
    of_another = Chain(site.chain.signer, site_id=SiteId("charite"))
    with pytest.raises(StatementInvalidError):
        renew_certificate(resources, SITE, of_another.renewal())
    assert AuditKind.CERTIFICATE_RENEWED not in recorded(resources)


def test_certificates_that_are_never_used_are_not_piled_up(resources, site) -> None:
    # The one of enrolment, and fifteen that nobody used.
    for _ in range(15):
        renew_certificate(resources, SITE, site.chain.renewal())
    with pytest.raises(RequestInvalidError):
        renew_certificate(resources, SITE, site.chain.renewal())
    n_rows = resources.db.read("count", lambda session: session.scalar(select(func.count()).select_from(Certificate)))
    assert n_rows == 16


def recover(resources, site, request, *, tamper=lambda challenge: challenge, signer=None) -> Renewed:
    key_sha256 = hashlib.sha256(site.chain.signer.spki_der).digest()
    challenge = challenge_renewal(resources, client_nonce=b"n" * 32, signing_key_sha256=key_sha256)
    challenge = tamper(challenge)
    signature = (signer or site.chain.signer).sign(proof_message(challenge, request.statement))
    return renew_by_signing_key(resources, request, challenge=challenge, signature=signature)


def test_site_that_was_away_for_weeks_recovers_by_its_signing_key(resources, clock, site) -> None:
    clock.move(days=40)
    with pytest.raises(CertificateEndedError):
        admit(resources, site.certificate_sha256)
    renewed = recover(resources, site, site.chain.renewal())
    admit(resources, sha256_of(renewed.certificate_pem))
    assert renewed.site_id == SITE


def test_challenge_is_of_use_once_in_five_minutes_for_one_statement_and_one_key(
    resources, clock, site, new_keys
) -> None:
    request = site.chain.renewal()
    with pytest.raises(PossessionUnprovenError):
        recover(resources, site, request, signer=new_keys().signer)
    forged = RenewalChallenge.decode(
        challenge_renewal(
            resources, client_nonce=b"n" * 32, signing_key_sha256=hashlib.sha256(site.chain.signer.spki_der).digest()
        ).body
    )
    with pytest.raises(RenewalChallengeError):
        recover(resources, site, request, tamper=lambda _: sign_challenge(new_keys().signer, forged))
    challenge = challenge_renewal(
        resources, client_nonce=b"n" * 32, signing_key_sha256=hashlib.sha256(site.chain.signer.spki_der).digest()
    )
    signature = site.chain.signer.sign(proof_message(challenge, request.statement))
    with pytest.raises(PossessionUnprovenError):
        renew_by_signing_key(resources, site.chain.renewal(), challenge=challenge, signature=signature)
    clock.move(minutes=5)
    with pytest.raises(RenewalChallengeError):
        renew_by_signing_key(resources, request, challenge=challenge, signature=signature)


@pytest.mark.parametrize("change", [SiteChange.SUSPEND, SiteChange.REVOKE])
def test_site_that_may_not_act_gets_no_certificate_by_either_way(resources, site, change) -> None:
    change_site_state(resources, site_id=SITE, change=change, reason="left", actor="user:admin")
    with pytest.raises(SiteNotActiveError):
        renew_certificate(resources, SITE, site.chain.renewal())
    with pytest.raises(SiteNotActiveError):
        recover(resources, site, site.chain.renewal())
    with pytest.raises(SiteNotActiveError):
        check_in(resources, SITE, site.chain.say(), agent_version="test")


def test_copy_of_a_state_folder_suspends_the_site_whoever_speaks_second(resources, site) -> None:
    for _ in range(3):
        check_in(resources, SITE, site.chain.say(), agent_version="test")
    copy = site.chain.copy()
    check_in(resources, SITE, copy.say(SiteStatementKind.STARTED), agent_version="test")
    with pytest.raises(SiteClonedError):
        renew_certificate(resources, SITE, site.chain.renewal())
    assert show_site(resources, SITE).state == "SUSPENDED"
    kinds = recorded(resources)
    assert kinds[-2:] == [AuditKind.SITE_CLONED, AuditKind.SITE_SUSPENDED]
    assert AuditKind.CERTIFICATE_RENEWED not in kinds
    with pytest.raises(SiteNotActiveError):
        check_in(resources, SITE, copy.say(), agent_version="test")


def test_folder_that_was_set_back_is_let_in_by_an_admin_and_the_other_copy_is_found(resources, site) -> None:
    copy = site.chain.copy()
    for _ in range(5):
        check_in(resources, SITE, site.chain.say(), agent_version="test")
    with pytest.raises(SiteClonedError):
        check_in(resources, SITE, copy.say(SiteStatementKind.STARTED), agent_version="test")
    change_site_state(resources, site_id=SITE, change=SiteChange.RESUME, reason=None, actor="user:admin")
    floor = check_in(resources, SITE, copy.say(), agent_version="test").counter_floor
    assert floor == 5
    copy.counter = floor
    check_in(resources, SITE, copy.say(), agent_version="test")
    with pytest.raises(SiteClonedError):
        check_in(resources, SITE, site.chain.say(), agent_version="test")


def test_crash_a_lost_answer_and_a_statement_that_came_late_are_no_copies(resources, site) -> None:
    said = site.chain.say(SiteStatementKind.STARTED)
    for _ in range(2):
        check_in(resources, SITE, said, agent_version="test")
    # It died with a number that nobody heard, and started again.
    lost = site.chain.say(SiteStatementKind.STARTED)
    check_in(resources, SITE, site.chain.say(SiteStatementKind.STARTED), agent_version="test")
    # What was lost on its way arrives after all; and what was heard long ago arrives again.
    check_in(resources, SITE, lost, agent_version="test")
    check_in(resources, SITE, said, agent_version="test")
    # Three in a row that nobody heard.
    for _ in range(3):
        site.chain.say()
    check_in(resources, SITE, site.chain.say(), agent_version="test")
    assert show_site(resources, SITE).state == "ENROLLED"


def test_coordinator_that_forgot_what_it_heard_after_its_backup_raises_no_alarm(resources, site) -> None:
    check_in(resources, SITE, site.chain.say(), agent_version="test")
    rows_of_backup = _statements(resources)
    for _ in range(4):
        check_in(resources, SITE, site.chain.say(), agent_version="test")
    _restore(resources, rows_of_backup, floor=1)
    check_in(resources, SITE, site.chain.say(), agent_version="test")
    assert show_site(resources, SITE).state == "ENROLLED"


def _statements(resources):  # noqa: ANN202
    def read(session):  # noqa: ANN202
        return [
            {
                "site_id": row.site_id,
                "counter": row.counter,
                "sha256": row.sha256,
                "previous_sha256": row.previous_sha256,
                "at": row.at,
            }
            for row in session.scalars(select(SiteStatementRow))
        ]

    return resources.db.read("rows", read)


def _restore(resources, rows, *, floor: int) -> None:
    def write(session) -> None:
        forget_statements(session, SITE)
        for row in rows:
            session.add(SiteStatementRow(**row))
        session.get(SiteRow, SITE).statement_floor = floor

    resources.db.run_tx("restore", write)


def test_new_enrolment_with_another_key_begins_another_chain(resources, new_keys) -> None:
    invitation = invite_site(resources, name="lab", actor="user:admin")
    keys = new_keys()
    enrol_site(resources, keys.request(invitation.code))
    chain = Chain(keys.signer, site_id=SiteId("lab"))
    for _ in range(3):
        news = check_in(resources, SiteId("lab"), chain.say(), agent_version="test")
    assert news.counter_floor == 3
