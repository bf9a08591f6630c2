"""The coordinator's exceptions. An expected outcome is a typed value; these facts stop a request or an effect.

    WardroundError                       fl_protocol.errors
    └── CoordinatorError
        ├── NotFoundError                    no such run, round, exchange, blob or site
        ├── NotInCohortError                 this site takes no part in what it speaks about
        ├── SiteNotActiveError               suspended or revoked
        ├── WrongPhaseError                  the step is not open: too early, or the round has moved on
        │   ├── LateError                    the step was closed before this arrived
        │   └── ScrubbedError                its content was deleted when the audit window closed
        ├── AuditLogShorterError             a proof is asked for about rows that this log does not have
        ├── ConflictError                    other content for a step that was taken already
        ├── InvalidMessageError              the message cannot be what it claims to be
        ├── DatabaseBusyError                db: the bounded retries of a transaction are used up
        ├── DatabaseUnavailableError         db: the database does not answer
        │   ├── DatabaseUnwritableError      it is read-only, damaged, or lacks a table; nothing was written
        │   │   └── AuditLogDamagedError     the audit log cannot be continued
        │   └── DatabaseFullError            no room on the database's disk; nothing was written
        ├── BlobError                        blobs
        │   ├── BlobNotFoundError
        │   ├── BlobDigestMismatchError
        │   ├── BlobOffsetError              a part that does not continue what is held
        │   ├── PartialTakenOverError        a later stream of the same upload has taken its place
        │   ├── BlobStoreFullError           the disk is full
        │   └── BlobStoreUnavailableError    the object store does not answer, or not as it should
        ├── IllegalTransitionError           rounds: a pair of state and event that no table lists
        ├── AggregationError                 aggregation
        │   └── VectorLengthError
        ├── EffectFailedError                driver: an effect has been tried as often as it may be
        └── ListenerError                    a port cannot be bound

The gateway and the REST rooms translate them once, by class; their ``code`` and facts travel, their sentences too.
"""

from __future__ import annotations

from fl_protocol.errors import WardroundError


class CoordinatorError(WardroundError):
    """Base of the coordinator's errors."""

    code = "coordinator-error"


class NotFoundError(CoordinatorError):
    """What was named does not exist, or not for the one who asks."""

    code = "not-found"


class NotInCohortError(CoordinatorError):
    """The site takes no part in the round or exchange that it speaks about."""

    code = "not-in-cohort"


class SiteNotActiveError(CoordinatorError):
    """The site is suspended or revoked."""

    code = "site-not-active"


class WrongPhaseError(CoordinatorError):
    """The step that the message belongs to is not open."""

    code = "wrong-phase"


class LateError(WrongPhaseError):
    """The step was closed before the message arrived; its content stays hidden and is not used."""

    code = "late"


class ScrubbedError(WrongPhaseError):
    """What is asked for was deleted when the round's audit window closed; digests, results and receipts are kept."""

    code = "scrubbed"


class AuditLogShorterError(CoordinatorError):
    """A site asks about a longer audit log than there is: what it saw is not here (any more)."""

    code = "audit-log-shorter"


class ConflictError(CoordinatorError):
    """Other content for a step that this site has taken already."""

    code = "conflicting-content"


class InvalidMessageError(CoordinatorError):
    """The message cannot be what it claims to be."""

    code = "invalid-message"


class DatabaseBusyError(CoordinatorError):
    """A transaction could not be serialised within its bounded retries."""

    code = "database-busy"


class DatabaseUnavailableError(CoordinatorError):
    """The database does not answer, or not to us. Where a commit was under way, ``is_outcome_known`` says so."""

    code = "database-unavailable"


class DatabaseUnwritableError(DatabaseUnavailableError):
    """The database is read-only, damaged, or lacks a table. Nothing was written, and nothing is until it is mended."""

    code = "database-unwritable"


class AuditLogDamagedError(DatabaseUnwritableError):
    """The audit log cannot be continued: what is stored beside its rows does not fit them. No record, no action."""

    code = "audit-log-damaged"


class DatabaseFullError(DatabaseUnavailableError):
    """There is no room on the database's disk. Nothing was written; the same again is right once there is."""

    code = "database-full"


class BlobError(CoordinatorError):
    """Something of the blob store."""

    code = "blob-error"


class BlobNotFoundError(BlobError):
    """No blob has this digest."""

    code = "blob-not-found"


class BlobDigestMismatchError(BlobError):
    """The bytes do not have the digest that was announced."""

    code = "blob-digest-mismatch"


class BlobOffsetError(BlobError):
    """A part of an upload does not continue what is held, or runs past the announced length."""

    code = "blob-offset"


class BlobStoreFullError(BlobError):
    """The store has no room left; nothing was lost, and the same upload may be resumed later."""

    code = "blob-store-full"


class PartialTakenOverError(BlobError):
    """A later stream writes this partial now; what this one appended is still held."""

    code = "upload-taken-over"


class BlobStoreUnavailableError(BlobError):
    """The store does not answer, or refuses the coordinator itself. Nothing was lost; trying again is right."""

    code = "blob-store-unavailable"


class IllegalTransitionError(CoordinatorError):
    """A pair of state and event that no transition table lists."""

    code = "illegal-transition"


class AggregationError(CoordinatorError):
    """Something of the sum."""

    code = "aggregation-error"


class VectorLengthError(AggregationError):
    """A masked vector is shorter or longer than the layout says."""

    code = "vector-length"


class EffectFailedError(CoordinatorError):
    """An effect has been tried as often as it may be."""

    code = "effect-failed"


class ListenerError(CoordinatorError):
    """A listener could not be opened."""

    code = "listener-failed"
