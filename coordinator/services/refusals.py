"""The refusals of the edge services; those of the round services stand in ``coordinator.errors``.

CoordinatorError
├── AccessRefusedError                who asks is not known: 401, UNAUTHENTICATED
│   ├── TokenMissingError, TokenUnknownError, TokenExpiredError, ExternalTokenRefusedError
│   ├── CertificateUnknownError
│   │   └── CertificateEndedError
│   ├── RenewalChallengeError
│   └── EnrolmentCodeUnknownError, EnrolmentCodeSpentError, EnrolmentCodeExpiredError
├── RoleInsufficientError             who asks is known and may not: 403
├── ScopeInsufficientError            who asks may, and this token may not: 403
├── RateLimitedError                  too often: 429
├── FourEyesError                     who asks may, but not alone: 403
├── SiteNotActiveError
│   └── SiteClonedError               two copies of one site: suspended, until an admin has looked
├── ReauthenticationError             who asks did not show once more that it is they: 403
├── ConflictError
│   ├── SiteExistsError, UserExistsError, SigningKeyInUseError
│   ├── StateConflictError            the object's state does not permit the step
│   ├── SignatureRoleTakenError, ManifestMismatchError
│   └── SecretShownOnceError, RequestInProgressError
├── InvalidMessageError
│   ├── PossessionUnprovenError
│   ├── StatementInvalidError
│   ├── RequestInvalidError
│   └── IdempotencyKeyReusedError
└── NotReadyError                     a part of the coordinator is down
"""

from __future__ import annotations

from coordinator.errors import ConflictError, CoordinatorError, InvalidMessageError, SiteNotActiveError


class AccessRefusedError(CoordinatorError):
    """Who asks could not be established."""

    code = "access-refused"


class TokenMissingError(AccessRefusedError):
    """The request carries no bearer token."""

    code = "token-missing"


class TokenUnknownError(AccessRefusedError):
    """No living token has this value: it was never issued, was revoked, or its user is disabled."""

    code = "token-unknown"


class TokenExpiredError(AccessRefusedError):
    """The token's time is over."""

    code = "token-expired"


class ExternalTokenRefusedError(AccessRefusedError):
    """The identity provider's token is not one that it made for this coordinator; ``reason`` says why."""

    code = "token-refused"


class CertificateUnknownError(AccessRefusedError):
    """The certificate of the peer is not one that was issued here, or has ended."""

    code = "certificate-unknown"


class CertificateEndedError(CertificateUnknownError):
    """The certificate was issued here, and has expired or was replaced. Its site renews by its signing key."""

    code = "certificate-ended"


class RenewalChallengeError(AccessRefusedError):
    """The challenge that a site answered is not this coordinator's, or too old. Asking for another one is right."""

    code = "renewal-challenge-refused"


class SiteClonedError(SiteNotActiveError):
    """A site said something that contradicts what it said before: two copies of its state folder are in use."""

    code = "site-cloned"


class EnrolmentCodeUnknownError(AccessRefusedError):
    """No invitation has this code."""

    code = "enrolment-code-unknown"


class EnrolmentCodeSpentError(AccessRefusedError):
    """The code was used by another key, or replaced by a later one."""

    code = "enrolment-code-spent"


class EnrolmentCodeExpiredError(AccessRefusedError):
    """The code's time is over."""

    code = "enrolment-code-expired"


class RoleInsufficientError(CoordinatorError):
    """None of the user's roles permits the action."""

    code = "role-insufficient"


class ScopeInsufficientError(CoordinatorError):
    """One of the user's roles permits the action, and the token's scopes leave it out."""

    code = "scope-insufficient"


class RateLimitedError(CoordinatorError):
    """Too many requests with one token, or failures of one address; ``retry_after_s`` says how long to wait."""

    code = "rate-limited"


class FourEyesError(CoordinatorError):
    """A run is started by another person than the one who created it; a release is signed by two persons."""

    code = "four-eyes"


class ReauthenticationError(CoordinatorError):
    """To sign one shows once more who one is, and this was not shown; ``reason`` says what is missing."""

    code = "reauthentication-failed"


class SiteExistsError(ConflictError):
    """The name belongs to a site already; a name is never given twice."""

    code = "site-exists"


class UserExistsError(ConflictError):
    """The name belongs to a user already."""

    code = "user-exists"


class SigningKeyInUseError(ConflictError):
    """The signing key belongs to another site."""

    code = "signing-key-in-use"


class StateConflictError(ConflictError):
    """The object is not in a state from which this step leads on."""

    code = "state-conflict"


class SignatureRoleTakenError(ConflictError):
    """Somebody has signed in this role already; the second signature is one in another."""

    code = "signature-role-taken"


class ManifestMismatchError(ConflictError):
    """The signature is over another manifest than the release's."""

    code = "manifest-mismatch"


class SecretShownOnceError(ConflictError):
    """The answer to the first request held a secret, which was not kept and cannot be given again."""

    code = "secret-shown-once"


class RequestInProgressError(ConflictError):
    """A request with the same key is at work right now."""

    code = "request-in-progress"


class PossessionUnprovenError(InvalidMessageError):
    """The proof that the site holds its signing key does not verify."""

    code = "possession-unproven"


class StatementInvalidError(InvalidMessageError):
    """A site's signed statement is malformed, unsigned or about something else."""

    code = "statement-invalid"


class RequestInvalidError(InvalidMessageError):
    """A request asks for what cannot be."""

    code = "request-invalid"


class IdempotencyKeyReusedError(InvalidMessageError):
    """The same Idempotency-Key came with another request."""

    code = "idempotency-key-reused"


class NotReadyError(CoordinatorError):
    """A part of the coordinator is not at work."""

    code = "not-ready"
