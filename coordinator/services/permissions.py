"""Who may do what: one table from action to roles, and the scopes that narrow a token. What is not listed is denied.

``docs/reference/roles.md`` is generated from here. Pure: knows no request and no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from coordinator.services.refusals import RequestInvalidError, RoleInsufficientError, ScopeInsufficientError

MAX_SCOPES = 32


class Role(StrEnum):
    """What a user is to the consortium."""

    ADMIN = "admin"
    STUDY_LEAD = "study-lead"
    PRIVACY_OFFICER = "privacy-officer"
    AUDITOR = "auditor"


class Action(StrEnum):
    """What can be done over REST: a resource, a colon, and what is done to it."""

    READ_ME = "me:read"
    READ_SITES = "sites:read"
    INVITE_SITE = "sites:invite"
    SUSPEND_SITE = "sites:suspend"
    RESUME_SITE = "sites:resume"
    REVOKE_SITE = "sites:revoke"
    PUT_BLOB = "blobs:put"
    READ_RUNS = "runs:read"
    CREATE_RUN = "runs:create"
    START_RUN = "runs:start"
    PAUSE_RUN = "runs:pause"
    RESUME_RUN = "runs:resume"
    CANCEL_RUN = "runs:cancel"
    READ_SUMS = "sums:read"
    READ_RELEASES = "releases:read"
    REVIEW_RELEASE = "releases:review"
    APPROVE_RELEASE = "releases:approve"
    WITHDRAW_RELEASE = "releases:withdraw"
    DOWNLOAD_RELEASE = "releases:download"
    READ_AUDIT = "audit:read"
    EXPORT_AUDIT = "audit:export"
    READ_METRICS = "metrics:read"
    READ_USERS = "users:read"
    MANAGE_USERS = "users:manage"
    OWN_PASSPHRASE = "passphrase:own"  # noqa: S105 # the name of an action, no secret
    OWN_TOKENS = "tokens:own"
    MANAGE_TOKENS = "tokens:manage"

    @property
    def resource(self) -> str:
        """What it is done to."""
        return self.value.partition(":")[0]


_EVERYBODY = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
_LEAD = frozenset({Role.ADMIN, Role.STUDY_LEAD})
_LEAD_OR_PRIVACY = _LEAD | {Role.PRIVACY_OFFICER}
SIGNING_ROLES = frozenset({Role.STUDY_LEAD, Role.PRIVACY_OFFICER})
"""Those in which a release is signed: one answers for what it is good for, the other for the patients."""
_WATCHERS = frozenset({Role.ADMIN, Role.PRIVACY_OFFICER, Role.AUDITOR})

ROLES: Mapping[Action, frozenset[Role]] = {
    Action.READ_ME: _EVERYBODY,
    Action.READ_SITES: _EVERYBODY,
    Action.INVITE_SITE: _ADMIN,
    Action.SUSPEND_SITE: _ADMIN | {Role.PRIVACY_OFFICER},
    Action.RESUME_SITE: _ADMIN,
    Action.REVOKE_SITE: _ADMIN,
    Action.PUT_BLOB: _LEAD,
    Action.READ_RUNS: _EVERYBODY,
    Action.CREATE_RUN: _LEAD,
    Action.START_RUN: _LEAD,
    Action.PAUSE_RUN: _LEAD_OR_PRIVACY,
    Action.RESUME_RUN: _LEAD,
    Action.CANCEL_RUN: _LEAD,
    Action.READ_SUMS: _WATCHERS,
    Action.READ_RELEASES: _EVERYBODY,
    Action.REVIEW_RELEASE: SIGNING_ROLES | {Role.AUDITOR},
    # Not the admin, who makes the others' accounts: what a release is fit for is not a question of running the service.
    Action.APPROVE_RELEASE: SIGNING_ROLES,
    Action.WITHDRAW_RELEASE: _LEAD_OR_PRIVACY,
    Action.DOWNLOAD_RELEASE: _EVERYBODY,
    Action.READ_AUDIT: _WATCHERS,
    Action.EXPORT_AUDIT: _WATCHERS,
    # Nothing of a patient or a person is in them; how the service is doing is for those who answer for it.
    Action.READ_METRICS: frozenset({Role.ADMIN, Role.AUDITOR}),
    Action.READ_USERS: _ADMIN,
    Action.MANAGE_USERS: _ADMIN,
    Action.OWN_PASSPHRASE: _EVERYBODY,
    Action.OWN_TOKENS: _EVERYBODY,
    Action.MANAGE_TOKENS: _ADMIN,
}

_SCOPES: Mapping[str, frozenset[Action]] = {
    **{action.value: frozenset({action}) for action in Action},
    **{
        f"{resource}:*": frozenset(action for action in Action if action.resource == resource)
        for resource in {action.resource for action in Action}
    },
    "*:read": frozenset(action for action in Action if action.value.endswith(":read")),
}
"""A scope is an action, all actions on one resource, or all reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who holds the token of a request.

    Invariant: what it may do is what one of its roles permits and, where its token has scopes, one of these names too.
    """

    user_id: str
    name: str
    roles: frozenset[Role]
    token_id: str
    scopes: tuple[str, ...] | None = None
    is_external: bool = False

    @property
    def actor(self) -> str:
        """How the audit log names this user; one of an identity provider's is named so already."""
        return self.name if self.is_external else f"user:{self.name}"


def is_permitted(principal: Principal, action: Action) -> bool:
    """Whether one of the user's roles permits the action, and the token's scopes do not leave it out."""
    is_in_scope = principal.scopes is None or action in actions_of(principal.scopes)
    return is_in_scope and bool(principal.roles & ROLES.get(action, frozenset()))


def require(principal: Principal, action: Action) -> None:
    """Pass, or say what is missing.

    Raises:
        RoleInsufficientError: no role of the user's permits it.
        ScopeInsufficientError: a role does, and the token was made for less.
    """
    permitting = ROLES.get(action, frozenset())
    if not principal.roles & permitting:
        raise RoleInsufficientError(
            "your roles do not permit this",
            action=action.value,
            needed=" or ".join(sorted(permitting)),
            held=", ".join(sorted(principal.roles)) or "none",
        )
    if not is_permitted(principal, action):
        raise ScopeInsufficientError(
            "your roles permit this, and this token was made for less",
            action=action.value,
            scopes=", ".join(principal.scopes or ()),
            advice="Use another token of yours, or make one: wardround tokens create --scope SCOPE",
        )


def role_from_text(text: str) -> Role:
    """The role of that name.

    Raises:
        RequestInvalidError: there is none.
    """
    try:
        return Role(text)
    except ValueError as error:
        raise RequestInvalidError(f"a role is one of {', '.join(Role)}", role=text[:80]) from error


def actions_of(scopes: Iterable[str]) -> frozenset[Action]:
    """Every action that these scopes name. One that a later version knew names nothing here, so it permits nothing."""
    return frozenset(action for scope in scopes for action in _SCOPES.get(scope, frozenset()))


def checked_scopes(asked: Iterable[str] | None, *, maker: Principal | None) -> tuple[str, ...] | None:
    """The scopes of a new token, sorted; None for all that its user's roles permit.

    Args:
        asked: what the request names; None for as wide as may be.
        maker: whose token asks. Safety: a narrowed token makes none that is wider than itself.

    Raises:
        RequestInvalidError: a scope does not exist, or there are none or too many.
        ScopeInsufficientError: the maker's own token is narrower.
    """
    held = None if maker is None else maker.scopes
    if asked is None:
        return held
    scopes = tuple(sorted(set(asked)))
    unknown = [scope for scope in scopes if scope not in _SCOPES]
    if unknown or not 1 <= len(scopes) <= MAX_SCOPES:
        raise RequestInvalidError(
            f"scopes are 1 to {MAX_SCOPES} of: an action such as runs:read, runs:*, *:read",
            unknown=", ".join(unknown)[:200],
        )
    if held is not None and not actions_of(scopes) <= actions_of(held):
        raise ScopeInsufficientError("a token makes none that may do more than itself", scopes=", ".join(held))
    return scopes
