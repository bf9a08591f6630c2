# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import hashlib
from datetime import datetime

import pytest
from cryptography import x509
from sqlalchemy import select

from coordinator.db import models
from coordinator.db.states import SiteState
from coordinator.errors import NotFoundError, SiteNotActiveError
from coordinator.services.change_site_state import SiteChange, change_site_state
from coordinator.services.enrol_site import enrol_site
from coordinator.services.idempotency import RequestIdentity, keep_answer, release_answer, reserve_answer
from coordinator.services.identify_site import identify_site
from coordinator.services.invite_site import invite_site
from coordinator.services.permissions import Action, Role, is_permitted
from coordinator.services.refusals import (
    CertificateUnknownError,
    EnrolmentCodeExpiredError,
    IdempotencyKeyReusedError,
    RequestInProgressError,
    RequestInvalidError,
    ScopeInsufficientError,
    StateConflictError,
    TokenExpiredError,
    TokenUnknownError,
)
from coordinator.services.resources import Resources
from coordinator.services.tokens import TokenRequest, create_token, identify_token, revoke_token
from coordinator.services.users import add_user, revoke_role
from fl_protocol.audit.events import AuditKind, event_from_bytes
from fl_protocol.ids import SiteId
from fl_protocol.pki.tls import certificate_fingerprint


def recorded(resources: Resources) -> list[str]:
    query = select(models.AuditRow.body).order_by(models.AuditRow.seq)
    bodies = resources.db.read("test", lambda session: list(session.scalars(query)))
    return [event_from_bytes(body).event.kind for body in bodies]


def enrolled_certificate(resources: Resources, name: str, new_keys) -> str:
    invitation = invite_site(resources, name=name, actor="user:admin")
    answer = enrol_site(resources, new_keys().request(invitation.code))
    return certificate_fingerprint(x509.load_pem_x509_certificate(answer.certificate_pem))


def test_token_is_kept_as_its_digest_and_expires(resources, clock) -> None:
    user = add_user(resources, name="ada", roles=[Role.AUDITOR], actor="coordinator")
    made = create_token(resources, TokenRequest(user="ada", label="laptop", lifetime_s=60.0), actor="user:ada")
    assert made.value.startswith("wrt_")
    assert len(made.value) == 47
    stored = resources.db.read("test", lambda session: session.scalars(select(models.Token)).one())
    assert stored.token_sha256 == hashlib.sha256(made.value.encode()).hexdigest()
    principal = identify_token(resources, made.value)
    assert (principal.user_id, principal.roles) == (user.user_id, {Role.AUDITOR})
    clock.move(seconds=60)
    with pytest.raises(TokenExpiredError):
        identify_token(resources, made.value)


def test_token_lives_ninety_days_when_nobody_says_and_a_year_at_most(resources, clock) -> None:
    add_user(resources, name="ada", roles=[Role.AUDITOR], actor="coordinator")
    made = create_token(resources, TokenRequest(user="ada", label=""), actor="user:ada")
    assert made.view.expires_at is not None
    assert (made.view.expires_at - made.view.created_at).days == 90
    for lifetime_s in (366 * 86400.0 + 1, 0.0, -1.0, float("nan"), float("inf"), 1e300):
        with pytest.raises(RequestInvalidError):
            create_token(resources, TokenRequest(user="ada", label="", lifetime_s=lifetime_s), actor="user:ada")


def test_last_use_of_a_token_is_noted_to_the_minute(resources, clock) -> None:
    add_user(resources, name="ada", roles=[Role.AUDITOR], actor="coordinator")
    made = create_token(resources, TokenRequest(user="ada", label=""), actor="user:ada")

    def last_use() -> datetime | None:
        return resources.db.read("test", lambda session: session.scalars(select(models.Token.last_used_at)).one())

    assert last_use() is None
    identify_token(resources, made.value)
    first = last_use()
    assert first == clock.now()
    clock.move(seconds=59)
    identify_token(resources, made.value)
    assert last_use() == first
    clock.move(seconds=1)
    identify_token(resources, made.value)
    assert last_use() == clock.now()


def test_narrowed_token_may_do_what_its_scopes_and_its_users_roles_both_permit(resources) -> None:
    add_user(resources, name="ada", roles=[Role.AUDITOR], actor="coordinator")
    request = TokenRequest(user="ada", label="", scopes=["runs:*", "audit:read"])
    made = create_token(resources, request, actor="user:ada")
    principal = identify_token(resources, made.value)
    assert principal.scopes == ("audit:read", "runs:*")
    assert {action for action in Action if is_permitted(principal, action)} == {Action.READ_RUNS, Action.READ_AUDIT}


def test_program_that_knows_no_scopes_does_not_know_a_narrowed_token(resources) -> None:
    """0.1's look-up is the plain SHA-256 of the value: it must not find a token that it would take for a wide one."""
    add_user(resources, name="ada", roles=[Role.ADMIN], actor="coordinator")
    made = create_token(resources, TokenRequest(user="ada", label="", scopes=["me:read"]), actor="user:ada")
    digest = hashlib.sha256(made.value.encode()).hexdigest()
    query = select(models.Token).where(models.Token.token_sha256 == digest)
    assert resources.db.read("test", lambda session: session.scalars(query).all()) == []


def test_narrowed_token_makes_none_that_is_wider(resources) -> None:
    add_user(resources, name="ada", roles=[Role.ADMIN], actor="coordinator")
    narrow = TokenRequest(user="ada", label="", scopes=["tokens:own", "*:read"])
    maker = identify_token(resources, create_token(resources, narrow, actor="user:ada").value)
    inherited = create_token(resources, TokenRequest(user="ada", label=""), actor="user:ada", maker=maker)
    assert inherited.view.scopes == ("*:read", "tokens:own")
    inside = TokenRequest(user="ada", label="", scopes=["runs:read"])
    assert create_token(resources, inside, actor="user:ada", maker=maker).view.scopes == ("runs:read",)
    with pytest.raises(ScopeInsufficientError):
        create_token(resources, TokenRequest(user="ada", label="", scopes=["runs:*"]), actor="user:ada", maker=maker)


@pytest.mark.parametrize("scopes", [[], ["runs"], ["*"], ["*:*"], ["runs:delete"], ["runs:read", "nonsense"]])
def test_scope_that_does_not_exist_is_refused(resources, scopes) -> None:
    add_user(resources, name="ada", roles=[], actor="coordinator")
    with pytest.raises(RequestInvalidError):
        create_token(resources, TokenRequest(user="ada", label="", scopes=scopes), actor="user:ada")


def test_token_of_another_user_cannot_be_revoked_by_its_guesser(resources) -> None:
    add_user(resources, name="ada", roles=[], actor="coordinator")
    other = add_user(resources, name="bob", roles=[], actor="coordinator")
    made = create_token(resources, TokenRequest(user="ada", label=""), actor="user:ada")
    with pytest.raises(NotFoundError):
        revoke_token(resources, token_id=made.view.token_id, actor="user:bob", owner=other.user_id)
    revoke_token(resources, token_id=made.view.token_id, actor="user:admin", owner=None)
    with pytest.raises(TokenUnknownError):
        identify_token(resources, made.value)


def test_last_admin_stays(resources) -> None:
    add_user(resources, name="ada", roles=[Role.ADMIN], actor="coordinator")
    with pytest.raises(StateConflictError):
        revoke_role(resources, user="ada", role=Role.ADMIN, actor="user:ada")
    add_user(resources, name="bob", roles=[Role.ADMIN], actor="coordinator")
    assert revoke_role(resources, user="ada", role=Role.ADMIN, actor="user:bob").roles == ()


def test_code_expires_at_its_instant_and_not_before(resources, clock, new_keys) -> None:
    early = invite_site(resources, name="early", actor="user:admin")
    late = invite_site(resources, name="late", actor="user:admin")
    clock.move(seconds=3599)
    assert enrol_site(resources, new_keys().request(early.code)).site_id == "early"
    clock.move(seconds=1)
    with pytest.raises(EnrolmentCodeExpiredError):
        enrol_site(resources, new_keys().request(late.code))
    assert recorded(resources) == [AuditKind.SITE_INVITED, AuditKind.SITE_INVITED, AuditKind.SITE_ENROLLED]


def test_code_of_a_revoked_site_opens_nothing_even_for_its_own_keys(resources, new_keys) -> None:
    invitation = invite_site(resources, name="gone", actor="user:admin")
    keys = new_keys()
    enrol_site(resources, keys.request(invitation.code))
    change_site_state(resources, site_id="gone", change=SiteChange.REVOKE, reason="left", actor="user:admin")
    with pytest.raises(SiteNotActiveError):
        enrol_site(resources, keys.request(invitation.code))


def test_certificate_speaks_for_its_site_only_and_only_while_it_lives(resources, clock, new_keys) -> None:
    sha256 = enrolled_certificate(resources, "st-mary", new_keys)
    enrolled_certificate(resources, "charite", new_keys)
    assert identify_site(resources, site_id=SiteId("st-mary"), certificate_sha256=sha256).site_id == "st-mary"
    for site_id, certificate in (("charite", sha256), ("st-mary", "0" * 64), ("nobody", sha256)):
        with pytest.raises(CertificateUnknownError):
            identify_site(resources, site_id=SiteId(site_id), certificate_sha256=certificate)
    clock.move(days=90)
    with pytest.raises(CertificateUnknownError):
        identify_site(resources, site_id=SiteId("st-mary"), certificate_sha256=sha256)


def test_revoked_site_is_refused_and_does_not_come_back(resources, new_keys) -> None:
    sha256 = enrolled_certificate(resources, "st-mary", new_keys)
    change_site_state(resources, site_id="st-mary", change=SiteChange.REVOKE, reason="left", actor="user:admin")
    with pytest.raises(SiteNotActiveError):
        identify_site(resources, site_id=SiteId("st-mary"), certificate_sha256=sha256)
    with pytest.raises(StateConflictError):
        change_site_state(resources, site_id="st-mary", change=SiteChange.RESUME, reason=None, actor="user:admin")
    again = change_site_state(resources, site_id="st-mary", change=SiteChange.REVOKE, reason="left", actor="user:b")
    assert again.state == SiteState.REVOKED
    assert recorded(resources).count(AuditKind.SITE_REVOKED) == 1


def test_suspension_needs_a_reason(resources, new_keys) -> None:
    enrolled_certificate(resources, "st-mary", new_keys)
    with pytest.raises(RequestInvalidError):
        change_site_state(resources, site_id="st-mary", change=SiteChange.SUSPEND, reason=" ", actor="user:admin")


def test_idempotency_key_is_reserved_kept_and_given_up(resources, clock) -> None:
    user = add_user(resources, name="ada", roles=[], actor="coordinator")
    identity = RequestIdentity(user_id=user.user_id, key="k", request_sha256="a" * 64)
    assert reserve_answer(resources, identity) is None
    with pytest.raises(RequestInProgressError):
        reserve_answer(resources, identity)
    release_answer(resources, identity)
    assert reserve_answer(resources, identity) is None
    clock.move(seconds=121)
    assert reserve_answer(resources, identity) is None  # whoever reserved it died
    keep_answer(resources, identity, status=201, body=b"{}")
    kept = reserve_answer(resources, identity)
    assert kept is not None
    assert (kept.status, kept.body) == (201, b"{}")
    with pytest.raises(IdempotencyKeyReusedError):
        reserve_answer(resources, RequestIdentity(user_id=user.user_id, key="k", request_sha256="b" * 64))
