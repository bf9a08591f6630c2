"""Why a role refuses. The list is closed: a refusal that is not in it does not exist."""

from __future__ import annotations

from enum import StrEnum

from fl_protocol.errors import Fact, ProtocolError
from fl_protocol.ids import SiteId


class RefusalReason(StrEnum):
    """What was wrong with a message, or with what it asks for."""

    MESSAGE_MALFORMED = "message-malformed"
    """The bytes are not an encoding of this message."""
    SIGNATURE_INVALID = "signature-invalid"
    """A signature is not that of the named party over these bytes."""
    CONTEXT_MISMATCH = "context-mismatch"
    """The statement belongs to another exchange, or to another cohort of it."""
    SENDER_MISMATCH = "sender-mismatch"
    """The statement names another site than the one that sent it."""
    LAYOUT_MISMATCH = "layout-mismatch"
    """The manifest, or the vector, has another layout than the approved one."""
    SITE_UNKNOWN = "site-unknown"
    """A site that is not in the set in question."""
    SITE_NOT_APPROVED = "site-not-approved"
    """A site, or its signing key, that was not approved."""
    SITE_REPEATED = "site-repeated"
    """A site appears twice, or the list is not in order."""
    KEY_REPEATED = "key-repeated"
    """Two sites advertise the same key, or one advertises its key twice."""
    KEY_INVALID = "key-invalid"
    """A public key with which no secret can be agreed."""
    OWN_MESSAGE_ALTERED = "own-message-altered"
    """The list lacks what this site sent, or shows it changed."""
    COHORT_TOO_SMALL = "cohort-too-small"
    """Fewer sites than this site's rules demand, at any of the three freezes."""
    COHORT_TOO_LARGE = "cohort-too-large"
    """More sites than the layout's capacity proof covers."""
    SURVIVORS_CHANGED = "survivors-changed"
    """Another survivor set than that of the earlier exchange of the same round."""
    SURVIVORS_SPLIT = "survivors-split"
    """The payload was masked before among sites too many of which are absent: they may unmask that earlier sum."""
    THRESHOLD_INVALID = "threshold-invalid"
    """A dealer shares its secrets under a threshold that does not protect, or that the cohort cannot meet."""
    SHARE_MISSING = "share-missing"
    """A dealer gave no share to a member, or a member reveals not what it holds."""
    SHARE_INVALID = "share-invalid"
    """A share does not open, or does not match the commitment."""
    SECRET_INVALID = "secret-invalid"  # noqa: S105 - the name of a reason
    """Shares that match their commitments give no secret that matches its own: the dealer cheated."""
    SIZE_MISMATCH = "size-mismatch"
    """An upload is not as long as the vector."""
    QUORUM_MISSING = "quorum-missing"
    """Fewer confirmations or reveals than the threshold."""


class SecAggRefusedError(ProtocolError):
    """A role refuses a message.

    Attributes:
        reason: out of a closed list.
        blamed: the site whose statement is at fault, where that is certain.
    """

    code = "secagg-refused"

    def __init__(self, reason: RefusalReason, blamed: SiteId | None = None, **facts: Fact) -> None:
        """Keep reason, blamed site and facts."""
        super().__init__(f"refused: {reason.value}", reason=reason.value, blamed=blamed, **facts)
        self.reason = reason
        self.blamed = blamed


class PhaseError(ProtocolError):
    """A step was called that the role's phase does not have: too early, or a second time."""

    code = "phase-error"
