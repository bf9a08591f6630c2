"""Somebody of an identity provider's signs a release: with a login of just now, and with nothing less."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.oidc.documents import HttpsFetcher
from coordinator.oidc.provider import IdentityProvider
from coordinator.oidc.rules import OidcRules
from coordinator.services.identify_bearer import identify_bearer
from coordinator.services.reauthenticate import Shown
from coordinator.services.refusals import ReauthenticationError, RequestInvalidError
from coordinator.services.show_releases import ReleaseView, show_release
from coordinator.services.sign_release import SignatureRequest, sign_release
from coordinator.services.signing_passphrases import set_passphrase
from fl_protocol.clock import SystemClock
from tests.support.local_issuer import AUDIENCE, LocalIssuer
from tests.support.released_run import CompletedRuns, open_resources
from wardround.evidence.release_folder import verify_release_folder

ROLES = {"study-auditors": "auditor", "study-leads": "study-lead", "officers": "privacy-officer"}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalIssuer]:
    made = LocalIssuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.stop()


@pytest.fixture
def runs(issuer: LocalIssuer, tmp_path: Path) -> Iterator[CompletedRuns]:
    rules = OidcRules(issuer=issuer.issuer, audience=AUDIENCE, roles_claim="roles", role_map=ROLES)
    provider = IdentityProvider(rules, HttpsFetcher(ca_file=issuer.ca_file))
    made = CompletedRuns(resources=open_resources(tmp_path, SystemClock(), identity_provider=provider))
    made.complete()
    yield made
    made.resources.db.dispose()


def sign_as(runs: CompletedRuns, issuer: LocalIssuer, fresh_token: str | None, *, sub: str = "grace") -> ReleaseView:
    """The everyday token says who asks; the other is shown to sign."""
    role = "study-leads" if sub == "grace" else "officers"
    everyday = identify_bearer(runs.resources, issuer.token(sub=sub, roles=[role]))
    release_id = runs.candidate().release_id
    digest = show_release(runs.resources, release_id).manifest_sha256
    return sign_release(
        runs.resources,
        release_id=release_id,
        request=SignatureRequest(meaning="fit for research", manifest_sha256=digest),
        signer=everyday,
        shown=Shown(fresh_token=fresh_token, passphrase="a passphrase that nobody set"),
    )


def login(issuer: LocalIssuer, *, seconds_ago: float, sub: str = "grace", **changes: object) -> str:
    return issuer.token(sub=sub, roles=["study-leads"], auth_time=time.time() - seconds_ago, **changes)


def test_two_people_of_the_provider_release_with_logins_of_just_now(
    runs: CompletedRuns, issuer: LocalIssuer, tmp_path: Path
) -> None:
    assert sign_as(runs, issuer, login(issuer, seconds_ago=5)).state == "APPROVED"
    officer = login(issuer, seconds_ago=290, sub="hopper")
    released = sign_as(runs, issuer, officer, sub="hopper")
    assert released.state == "PUBLISHED"
    host = issuer.issuer.split("/")[2]
    verified = verify_release_folder(runs.unpacked(released.release_id, tmp_path))
    assert [(one.user, one.authenticated_by) for one in verified.signatures] == [
        (f"oidc:{host}/grace", "fresh-login"),
        (f"oidc:{host}/hopper", "fresh-login"),
    ]


@pytest.mark.parametrize(
    ("seconds_ago", "reason"), [(310, "login-too-old"), (3600, "login-too-old"), (-120, "login-too-old")]
)
def test_login_of_long_ago_or_of_the_future_does_not_sign(
    runs: CompletedRuns, issuer: LocalIssuer, seconds_ago: float, reason: str
) -> None:
    with pytest.raises(ReauthenticationError) as caught:
        sign_as(runs, issuer, login(issuer, seconds_ago=seconds_ago))
    assert caught.value.facts["reason"] == reason


def test_everyday_token_does_not_sign_however_new_it_is(runs: CompletedRuns, issuer: LocalIssuer) -> None:
    """A provider issues a new token for an old login; only ``auth_time`` says when the person was asked."""
    for auth_time in (None, "now", True):
        with pytest.raises(ReauthenticationError) as caught:
            sign_as(runs, issuer, issuer.token(sub="grace", roles=["study-leads"], auth_time=auth_time))
        assert caught.value.facts["reason"] == "auth-time-missing"
    with pytest.raises(ReauthenticationError) as caught:
        sign_as(runs, issuer, None)
    assert caught.value.facts["reason"] == "fresh-token-missing"


def test_login_of_somebody_else_does_not_sign(runs: CompletedRuns, issuer: LocalIssuer) -> None:
    with pytest.raises(ReauthenticationError) as caught:
        sign_as(runs, issuer, login(issuer, seconds_ago=5, sub="hopper"))
    assert caught.value.facts["reason"] == "another-person"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1.0}, "expired"),
        ({"aud": "another"}, "audience-not-ours"),
        ({"iss": "https://e"}, "issuer-not-configured"),
    ],
)
def test_login_that_is_no_token_for_us_does_not_sign(
    runs: CompletedRuns, issuer: LocalIssuer, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ReauthenticationError) as caught:
        sign_as(runs, issuer, login(issuer, seconds_ago=5, **changes))
    assert caught.value.facts["reason"] == reason


def test_person_of_the_provider_sets_no_passphrase(runs: CompletedRuns, issuer: LocalIssuer) -> None:
    person = identify_bearer(runs.resources, issuer.token(sub="grace", roles=["study-leads"]))
    with pytest.raises(RequestInvalidError):
        set_passphrase(runs.resources, principal=person, passphrase="a long enough one", current=None)
