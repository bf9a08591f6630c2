"""What can go wrong before a site has an identity. Each error says what its reader may do about it.

SiteAgentError
└── EnrolmentError                   carries ``advice``
    ├── EnrolmentInputError              the typed text is no address, no fingerprint
    │   └── EnrolmentCodeInvalidError    or no code
    ├── EnrolmentCodeUnknownError        the coordinator does not know it
    ├── EnrolmentCodeSpentError          somebody used it, with other keys
    ├── EnrolmentCodeExpiredError
    ├── EnrolmentUnreachableError        no answer
    ├── ListenerCertificateError         another listener than the code names
    ├── RootFingerprintError             another root than the operator was told
    ├── EnrolmentRefusedError            any other refusal
    ├── EnrolmentAnswerError             an answer that does not fit the request
    ├── RecoveryAddressMissingError     it is not known where to recover
    ├── StatementsDamagedError          the number of the last statement cannot be read
    ├── AlreadyEnrolledError
    ├── NotEnrolledError
    ├── KeyMissingError
    ├── KeyDamagedError
    └── KeyPermissionsError              others could read a private key
"""

from __future__ import annotations

from fl_protocol.errors import Fact
from site_agent.errors import SiteAgentError


class EnrolmentError(SiteAgentError):
    """Base of this room's errors.

    Attributes:
        advice: what the operator may do, one sentence.
    """

    code = "enrolment-error"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(message, **facts)
        self.advice = advice


class EnrolmentInputError(EnrolmentError):
    """An address or a fingerprint was typed that is none."""

    code = "enrolment-input-invalid"


class EnrolmentCodeInvalidError(EnrolmentInputError):
    """A text is not an enrolment code."""

    code = "enrolment-code-invalid"


class EnrolmentCodeUnknownError(EnrolmentError):
    """The coordinator does not know the code."""

    code = "enrolment-code-unknown"


class EnrolmentCodeSpentError(EnrolmentError):
    """The code was used before, with other keys than this folder's."""

    code = "enrolment-code-spent"


class EnrolmentCodeExpiredError(EnrolmentError):
    """The code's time is over."""

    code = "enrolment-code-expired"


class EnrolmentUnreachableError(EnrolmentError):
    """Nobody answers at the coordinator's address. Trying again is right."""

    code = "enrolment-unreachable"


class ListenerCertificateError(EnrolmentError):
    """Who answers is not the listener that the code names. The code's secret was not sent."""

    code = "enrolment-certificate-mismatch"


class RootFingerprintError(EnrolmentError):
    """The coordinator's root certificate is not the one that the operator was told. Nothing was kept."""

    code = "root-fingerprint-mismatch"


class EnrolmentRefusedError(EnrolmentError):
    """The coordinator refused for another reason than the code."""

    code = "enrolment-refused"


class EnrolmentAnswerError(EnrolmentError):
    """The coordinator's answer does not fit what was asked. Nothing was kept."""

    code = "enrolment-answer-invalid"


class RecoveryAddressMissingError(EnrolmentError):
    """The certificate has ended, and where to recover was never told."""

    code = "recovery-address-missing"


class StatementsDamagedError(EnrolmentError):
    """The number of this site's last signed statement cannot be read."""

    code = "statements-damaged"


class AlreadyEnrolledError(EnrolmentError):
    """This folder has an identity."""

    code = "already-enrolled"


class NotEnrolledError(EnrolmentError):
    """This folder has no identity yet."""

    code = "not-enrolled"


class KeyMissingError(EnrolmentError):
    """A private key is not where it should be."""

    code = "key-missing"


class KeyDamagedError(EnrolmentError):
    """A key file does not hold a P-256 private key."""

    code = "key-damaged"


class KeyPermissionsError(EnrolmentError):
    """Other users of this machine could read a private key."""

    code = "key-permissions"
