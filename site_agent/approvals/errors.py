"""Why a decision on a run cannot be taken.

SiteAgentError
└── ApprovalError                    carries ``advice``
    ├── RunUnknownError
    ├── RunAlreadyDecidedError
    ├── RunNotApprovedError              there is nothing to take back
    ├── RunDocumentInvalidError          its bytes are not what its digests say
    │   └── LayoutSparseError                a row of its sums may be one site's
    ├── PolicyDeniedError                names the rule
    ├── ExpiryInvalidError               an approval must end after it begins
    ├── PurposeNeededError               a person must say under which purpose
    └── PeersUnlistedError               a person must accept keys that nobody compared
"""

from __future__ import annotations

from fl_protocol.errors import Fact
from site_agent.errors import SiteAgentError
from site_agent.policy.evaluate import Denied
from site_agent.policy.explain import sentence_for_rule


class ApprovalError(SiteAgentError):
    """Base of this room's errors.

    Attributes:
        advice: what the steward may do, one sentence.
    """

    code = "approval-error"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(message, **facts)
        self.advice = advice


class RunUnknownError(ApprovalError):
    """This site has not seen a run of that identifier."""

    code = "run-unknown"


class RunAlreadyDecidedError(ApprovalError):
    """The site's word on the run was given, and this decision cannot follow it."""

    code = "run-already-decided"


class RunDocumentInvalidError(ApprovalError):
    """A run's specification or layout is not what its digest says, or cannot be read."""

    code = "run-document-invalid"


class RunNotApprovedError(ApprovalError):
    """There is no approval that could be taken back."""

    code = "run-not-approved"


class LayoutSparseError(RunDocumentInvalidError):
    """The adapter's layout has tensors whose sum may show a row that one site alone changed."""

    code = "adapter-layout-sparse"


class PolicyDeniedError(ApprovalError):
    """The policy does not permit the run.

    Attributes:
        denied: the first rule that is not met.
    """

    code = "policy-denied"

    def __init__(self, denied: Denied) -> None:
        """Name the rule."""
        message = f"the policy denies this run: {sentence_for_rule(denied.rule)}"
        advice = "'wardround-site policy explain RUN' shows every rule; policy.yaml is the hospital's to change."
        super().__init__(message, advice=advice, rule=denied.rule, value=denied.value, limit=denied.limit)
        self.denied = denied


class ExpiryInvalidError(ApprovalError):
    """The end that was named for an approval is not in the future."""

    code = "expiry-invalid"


class PurposeNeededError(ApprovalError):
    """The run's own words name no permitted purpose, and more than one is permitted."""

    code = "purpose-needed"


class PeersUnlistedError(ApprovalError):
    """The run has sites whose keys were not compared out of band.

    Attributes:
        names: those sites.
    """

    code = "peers-unlisted"

    def __init__(self, names: tuple[str, ...]) -> None:
        """Name the sites."""
        message = f"the signing keys of these sites were not compared out of band: {', '.join(names)}"
        advice = (
            "Compare each key by telephone and add it ('wardround-site peers add NAME SHA256'), "
            "or say --accept-unlisted, which is recorded."
        )
        super().__init__(message, advice=advice)
        self.names = names
