"""One site in one attempt at a round.

``INVITED -> TRAINING -> READY -> KEYED -> UPLOADED -> COUNTED``, or ``DECLINED | DROPPED | REJECTED(reason)``. The
services step it when the site speaks, the driver when the site is silent or the round ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from coordinator.errors import IllegalTransitionError


class ParticipationState(StrEnum):
    """The states of a participation."""

    INVITED = "INVITED"
    TRAINING = "TRAINING"
    READY = "READY"
    KEYED = "KEYED"
    UPLOADED = "UPLOADED"
    COUNTED = "COUNTED"
    DECLINED = "DECLINED"
    DROPPED = "DROPPED"
    REJECTED = "REJECTED"

    @property
    def is_gone(self) -> bool:
        """Whether nothing more is expected of the site in this round."""
        return self in {ParticipationState.DECLINED, ParticipationState.DROPPED, ParticipationState.REJECTED}

    @property
    def is_at_work(self) -> bool:
        """Whether the site may still become ready."""
        return self in {ParticipationState.INVITED, ParticipationState.TRAINING}

    @property
    def can_exchange(self) -> bool:
        """Whether the site has a payload for an exchange that opens now."""
        return self in {ParticipationState.READY, ParticipationState.KEYED, ParticipationState.UPLOADED}


class ParticipationEvent(StrEnum):
    """What happens to a participation."""

    ACCEPTED = "accepted"
    REPORTED_READY = "reported-ready"
    REFUSED = "refused"
    FAILED = "failed"
    KEYS_ADVERTISED = "keys-advertised"
    UPLOAD_COMPLETED = "upload-completed"
    WENT_SILENT = "went-silent"
    BLAMED = "blamed"
    RETURNED = "returned"
    COUNTED = "counted"


class DropReason(StrEnum):
    """Why the coordinator gave up waiting for a site; what a site says of itself is a code of its own."""

    NOT_READY = "not-ready-in-time"
    NOT_ADVERTISED = "silent-in-advertising"
    NOT_SHARED = "silent-in-sharing"
    NOT_UPLOADED = "silent-in-collecting"
    SITE_NOT_ACTIVE = "site-not-active"
    SITE_REVOKED = "site-revoked"
    ENOUGH = "enough"

    @property
    def may_return(self) -> bool:
        """Whether the site still has its payload, as far as we know, and may bring it to a fresh exchange."""
        return self in {DropReason.NOT_ADVERTISED, DropReason.NOT_SHARED, DropReason.NOT_UPLOADED}


class RejectReason(StrEnum):
    """What a site was caught at."""

    SHARES_FALSE = "shares-false"
    DEAL_CONTESTED = "deal-contested"
    SECRET_FALSE = "secret-false"  # noqa: S105 # the name of a reason


_S, _E = ParticipationState, ParticipationEvent

TRANSITIONS: Mapping[tuple[ParticipationState, ParticipationEvent], ParticipationState] = MappingProxyType(
    {
        (_S.INVITED, _E.ACCEPTED): _S.TRAINING,
        (_S.INVITED, _E.REFUSED): _S.DECLINED,
        (_S.INVITED, _E.FAILED): _S.DROPPED,
        (_S.INVITED, _E.WENT_SILENT): _S.DROPPED,
        (_S.TRAINING, _E.ACCEPTED): _S.TRAINING,
        (_S.TRAINING, _E.REPORTED_READY): _S.READY,
        (_S.TRAINING, _E.REFUSED): _S.DECLINED,
        (_S.TRAINING, _E.FAILED): _S.DROPPED,
        (_S.TRAINING, _E.WENT_SILENT): _S.DROPPED,
        (_S.READY, _E.ACCEPTED): _S.READY,
        (_S.READY, _E.REPORTED_READY): _S.READY,
        (_S.READY, _E.REFUSED): _S.DECLINED,
        (_S.READY, _E.FAILED): _S.DROPPED,
        (_S.READY, _E.KEYS_ADVERTISED): _S.KEYED,
        (_S.READY, _E.WENT_SILENT): _S.DROPPED,
        (_S.KEYED, _E.REPORTED_READY): _S.KEYED,
        (_S.KEYED, _E.REFUSED): _S.DECLINED,
        (_S.KEYED, _E.FAILED): _S.DROPPED,
        (_S.KEYED, _E.KEYS_ADVERTISED): _S.KEYED,
        (_S.KEYED, _E.UPLOAD_COMPLETED): _S.UPLOADED,
        (_S.KEYED, _E.WENT_SILENT): _S.DROPPED,
        (_S.KEYED, _E.BLAMED): _S.REJECTED,
        # An exchange that failed before any share was revealed is run again, with fresh keys.
        (_S.UPLOADED, _E.KEYS_ADVERTISED): _S.KEYED,
        (_S.UPLOADED, _E.REPORTED_READY): _S.UPLOADED,
        (_S.UPLOADED, _E.UPLOAD_COMPLETED): _S.UPLOADED,
        (_S.UPLOADED, _E.REFUSED): _S.DECLINED,
        (_S.UPLOADED, _E.FAILED): _S.DROPPED,
        (_S.UPLOADED, _E.WENT_SILENT): _S.DROPPED,
        (_S.UPLOADED, _E.BLAMED): _S.REJECTED,
        (_S.UPLOADED, _E.COUNTED): _S.COUNTED,
        # Its masked vector was in U3 before it left: the sum holds it, and the row says so.
        (_S.DECLINED, _E.COUNTED): _S.COUNTED,
        (_S.DROPPED, _E.COUNTED): _S.COUNTED,
        # Silent in an exchange that failed, and there again for the next one.
        (_S.DROPPED, _E.RETURNED): _S.READY,
        (_S.DECLINED, _E.REFUSED): _S.DECLINED,
        (_S.DECLINED, _E.FAILED): _S.DECLINED,
        (_S.DROPPED, _E.FAILED): _S.DROPPED,
        (_S.DROPPED, _E.REFUSED): _S.DROPPED,
        # A dealer may be caught after it left, and one may be caught twice.
        (_S.DECLINED, _E.BLAMED): _S.REJECTED,
        (_S.DROPPED, _E.BLAMED): _S.REJECTED,
        (_S.REJECTED, _E.BLAMED): _S.REJECTED,
        (_S.REJECTED, _E.FAILED): _S.REJECTED,
        (_S.REJECTED, _E.REFUSED): _S.REJECTED,
    }
)


def step_participation(state: ParticipationState, event: ParticipationEvent) -> ParticipationState:
    """The state that follows.

    Raises:
        IllegalTransitionError: the table does not list the pair.
    """
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise IllegalTransitionError(
            "the participation's state does not permit this",
            machine="participation",
            state=state.value,
            event=event.value,
        ) from None
