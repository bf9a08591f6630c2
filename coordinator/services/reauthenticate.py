"""Whoever signs shows once more who they are, with something that their everyday token is not (decision 0037)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from coordinator.oidc.rules import TokenRefused
from coordinator.services.permissions import Principal
from coordinator.services.refusals import ReauthenticationError
from coordinator.services.resources import Resources
from coordinator.services.signing_passphrases import check_passphrase


class Method(StrEnum):
    """How it was shown."""

    PASSPHRASE = "passphrase"  # noqa: S105 # a word of the statement, no secret
    FRESH_LOGIN = "fresh-login"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What came with the request: a person of ours sends the passphrase, an identity provider's a fresh token."""

    passphrase: str | None = field(default=None, repr=False)
    fresh_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reauthenticated:
    """Who signs is who the token says.

    ``since`` is when the passphrase was set, or when the provider asked the person: a passphrase that was set minutes
    before a signature is something that an auditor wants to see.
    """

    method: Method
    since: datetime


def reauthenticate(resources: Resources, principal: Principal, shown: Shown) -> Reauthenticated:
    """Check what was shown.

    Raises:
        ReauthenticationError: it is missing, wrong, another person's or too old.
        RateLimitedError: too many passphrases were wrong.
        IdentityProviderUnavailableError: the provider is needed and does not answer.
    """
    if principal.is_external:
        return _by_fresh_login(resources, principal, shown.fresh_token)
    standing = check_passphrase(resources, principal=principal, passphrase=shown.passphrase)
    return Reauthenticated(method=Method.PASSPHRASE, since=standing.set_at)


def _by_fresh_login(resources: Resources, principal: Principal, token: str | None) -> Reauthenticated:
    provider, now = resources.identity_provider, resources.now()
    if provider is None or not token:
        raise ReauthenticationError(
            "send a token of a login that you made just now (`fresh_token`)", reason="fresh-token-missing"
        )
    subject = provider.judge(token, now=now)
    if isinstance(subject, TokenRefused):
        raise ReauthenticationError("the fresh token is refused", reason=subject.fault.value)
    if subject.name != principal.name:
        raise ReauthenticationError("the fresh token is another person's", reason="another-person")
    at = subject.authenticated_at
    if at is None:
        raise ReauthenticationError(
            "the identity provider does not say when you logged in (`auth_time`)",
            reason="auth-time-missing",
            advice="Ask for the token with max_age, so that the provider says it.",
        )
    age_s = now.timestamp() - at
    # A clock that runs ahead by less than a minute is forgiven, as for every token.
    if not -60.0 <= age_s <= resources.signature_max_age_s:
        raise ReauthenticationError(
            "the login is too old to sign with; log in again",
            reason="login-too-old",
            max_age_s=resources.signature_max_age_s,
        )
    return Reauthenticated(method=Method.FRESH_LOGIN, since=datetime.fromtimestamp(at, UTC))
