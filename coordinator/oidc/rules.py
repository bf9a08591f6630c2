"""What the operator said about the identity provider, and the words in which a token is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from coordinator.errors import CoordinatorError


class Algorithm(StrEnum):
    """The signatures that are accepted. Safety: a list of what may be, so ``none`` and HS* are no case of their own."""

    RS256 = "RS256"
    ES256 = "ES256"


class TokenFault(StrEnum):
    """Why a token is refused."""

    MALFORMED = "malformed"
    ALGORITHM = "algorithm-not-accepted"
    KEY_UNKNOWN = "key-unknown"
    SIGNATURE = "signature-wrong"
    ISSUER = "issuer-not-configured"
    AUDIENCE = "audience-not-ours"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    SUBJECT = "subject-unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcRules:
    """One issuer, one audience.

    Attributes:
        issuer: exactly as the tokens' ``iss`` says it.
        audience: what stands in ``aud`` of tokens that are for this coordinator.
        roles_claim: the claim with the roles; dots lead into objects unless a claim of the whole name exists.
        role_map: from the issuer's word to the name of a role. A word that is not here gives nothing.
        keys_host: where the issuer keeps its keys, if that is another host than its own.
        skew_s: by how much the two clocks may differ.
    """

    issuer: str
    audience: str
    roles_claim: str
    role_map: Mapping[str, str]
    keys_host: str | None = None
    skew_s: float = 60.0

    @property
    def host(self) -> str:
        """The issuer's host, with its port where it is not the usual one."""
        return urlsplit(self.issuer).netloc.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who a token speaks of, after everything was checked: ``roles`` are names of ours.

    ``authenticated_at`` is when the issuer last asked the person who they are (``auth_time``), in seconds since 1970;
    None where it does not say.
    """

    issuer: str
    host: str
    sub: str
    roles: frozenset[str]
    authenticated_at: float | None = None

    @property
    def name(self) -> str:
        """How the audit log names it; no local user can have such a name."""
        return f"oidc:{self.host}/{self.sub}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused:
    """The token is not one that this issuer made for us, or not now."""

    fault: TokenFault


class IdentityProviderUnavailableError(CoordinatorError):
    """The issuer does not answer, or not as an issuer does: nothing can be said of the token."""

    code = "identity-provider-unavailable"
