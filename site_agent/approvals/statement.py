"""The statement by which a site says yes or no: exact bytes, signed, never rendered again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import rfc8785

from fl_protocol.ids import RunId, Sha256Hex
from fl_protocol.signing.keys import Signer
from fl_protocol.signing.signed import SignedBody, sign_body
from site_agent.db.instants import instant_text

STATEMENT_KIND = "WR/sig/approval"


class Decision(StrEnum):
    """What a site says of a run."""

    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalStatement:
    """A decision on exactly one run specification.

    Attributes:
        cohort_sha256: of the names and signing keys that the run is among. The specification's digest covers them too;
            here they can be compared by who has not got the specification.
        purpose: None unless the run is approved.
        expires_at: the first instant at which the approval holds no more. None unless the run is approved.
    """

    run_id: RunId
    run_spec_sha256: Sha256Hex
    cohort_sha256: Sha256Hex
    decision: Decision
    dataset: str
    purpose: str | None
    local_user: str
    at: datetime
    expires_at: datetime | None = None

    def body(self) -> bytes:
        """The canonical JSON (RFC 8785) that is signed."""
        return rfc8785.dumps(
            {
                "run_id": self.run_id,
                "run_spec_sha256": self.run_spec_sha256,
                "cohort_sha256": self.cohort_sha256,
                "decision": self.decision.value,
                "dataset": self.dataset,
                "purpose": self.purpose,
                "local_user": self.local_user,
                "at": instant_text(self.at),
                "expires_at": None if self.expires_at is None else instant_text(self.expires_at),
            }
        )


def sign_statement(signer: Signer, statement: ApprovalStatement) -> SignedBody:
    """The statement's body under the site's signing key."""
    return sign_body(signer, STATEMENT_KIND, statement.body())
