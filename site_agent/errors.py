"""The errors of the site agent. Each is raised at the fact and translated once, by the daemon or by a command.

    WardroundError
    └── SiteAgentError
        ├── SessionError
        │   └── IllegalTransitionError      the machine has no such transition
        ├── RoundRefusedError               a check of this site said no: a closed reason
        ├── LinkError
        │   ├── CoordinatorUnavailableError no answer, or none in time: try again
        │   │   ├── CoordinatorBusyError    it asks to try again later
        │   │   └── TransferIdleError       a transfer without a new byte for the idle deadline
        │   ├── CoordinatorRefusedError     a typed refusal
        │   ├── AnswerInvalidError          an answer that is not what the protocol says
        │   ├── ProxyInvalidError           the proxy that is set is none
        │   ├── ProxyCredentialsError       the file with its credentials cannot be used
        │   ├── BlobInvalidError            a download that is not the bytes that were named
        │   ├── ChunkInvalidError           a chunk of one that was altered on its way
        │   ├── DownloadDiskError           a download that the state folder has no room for
        │   └── ReceiptInvalidError         a receipt that does not prove the upload
        ├── StateError
        │   ├── StateDirectoryLockedError   another agent works on this folder
        │   ├── JournalDamagedError         a journal file cannot be opened
        │   ├── OneShotSpentError           a flag is set for something else
        │   ├── PublicStateError            this site's own public state is missing or damaged
        │   └── SiteDiskFullError           no room; what wanted it did not happen, and may be done again
        └── JobError
            ├── JobFailedError              the trainer said why
            ├── JobTimedOutError
            ├── TrainerDiedError            the trainer ended without a word
            ├── TrainerAbsentError          no trainer serves the jobs folder
            └── RunnerError                 a trainer cannot be started as site.yaml says
                ├── EngineUnavailableError  the engine or the cluster does not answer
                ├── ImageMismatchError      the image is not the one that is named
                └── GpuUnavailableError     there is no GPU to be given

Rooms that raise errors of their own (policy, enrolment, datasets, audit, settings) derive them from SiteAgentError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fl_protocol.errors import Fact, WardroundError


class SiteAgentError(WardroundError):
    """Base of the site agent's errors."""

    code: ClassVar[str] = "site-agent-error"


class SessionError(SiteAgentError):
    """Base of the errors of the session machine."""

    code = "session-error"


class IllegalTransitionError(SessionError):
    """An event came in a phase that has no transition for it."""

    code = "illegal-transition"


class RoundRefusedError(SiteAgentError):
    """A check of this site said no.

    Attributes:
        reason: the closed code that the coordinator is told.
    """

    code = "round-refused"

    def __init__(self, message: str, *, reason: str, **facts: Fact) -> None:
        """Keep the reason beside the sentence."""
        super().__init__(message, reason=reason, **facts)
        self.reason = reason


class LinkError(SiteAgentError):
    """Base of the errors of talking to the coordinator."""

    code = "link-error"


class CoordinatorUnavailableError(LinkError):
    """The coordinator gave no answer, or not in time. Trying again is right."""

    code = "coordinator-unavailable"


class CoordinatorBusyError(CoordinatorUnavailableError):
    """The coordinator is there and asks to try again later: neither a failure nor silence.

    Attributes:
        retry_after_s: when.
    """

    code = "coordinator-busy"

    def __init__(self, message: str, *, retry_after_s: float, **facts: Fact) -> None:
        """Keep the wait beside the sentence."""
        super().__init__(message, retry_after_s=retry_after_s, **facts)
        self.retry_after_s = retry_after_s


class TransferIdleError(CoordinatorUnavailableError):
    """No byte of a transfer came through for the idle deadline. What arrived is kept, and it may be taken up again."""

    code = "transfer-idle"


class CoordinatorRefusedError(LinkError):
    """The coordinator said no.

    Attributes:
        status: the gRPC status name.
        refusal_code: the coordinator's stable code; empty where it sent none.
    """

    code = "coordinator-refused"

    def __init__(self, message: str, *, status: str, refusal_code: str, **facts: Fact) -> None:
        """Keep the coordinator's code beside its sentence."""
        super().__init__(message, status=status, refusal_code=refusal_code, **facts)
        self.status = status
        self.refusal_code = refusal_code


class AnswerInvalidError(LinkError):
    """The coordinator's answer is not what the protocol says."""

    code = "answer-invalid"


class ProxyInvalidError(LinkError):
    """The proxy that a setting or the environment names is none that can be used."""

    code = "proxy-invalid"


class ProxyCredentialsError(LinkError):
    """The file with the proxy's credentials is missing, open to others, or holds something else."""

    code = "proxy-credentials-invalid"


class BlobInvalidError(LinkError):
    """Downloaded bytes are not the bytes that were named."""

    code = "blob-invalid"


class ChunkInvalidError(LinkError):
    """A chunk of a download does not have the digest that came with it; it is not kept and is asked for again."""

    code = "chunk-invalid"


class DownloadDiskError(LinkError):
    """A download cannot be written to the state folder. What is there is kept; free some room."""

    code = "download-disk"


class ReceiptInvalidError(LinkError):
    """A receipt does not prove that this upload was received."""

    code = "receipt-invalid"


class StateError(SiteAgentError):
    """Base of the errors of the agent's own files."""

    code = "state-error"


class StateDirectoryLockedError(StateError):
    """Another agent works on this state directory."""

    code = "state-directory-locked"


class JournalDamagedError(StateError):
    """A file of the journal cannot be opened. What it protected must be given up, not guessed."""

    code = "journal-damaged"


class OneShotSpentError(StateError):
    """A step that a site takes once was taken before, for something else."""

    code = "one-shot-spent"


class PublicStateError(StateError):
    """This site's own copy of a run's public state is missing or damaged."""

    code = "public-state-damaged"


class SiteDiskFullError(StateError):
    """There is no room on this site's disk. What wanted it did not happen, and is right to do once there is."""

    code = "site-disk-full"


class JobError(SiteAgentError):
    """Base of the errors of running a job."""

    code = "job-error"


class JobFailedError(JobError):
    """The trainer ended a job with a typed failure.

    Attributes:
        failure_code: the trainer's stable code.
        advice: what the site's operator may do about it.
        found: what the trainer's facts are, such as a file and a line. For this site's operator alone: they are none of
            this error's own facts, which are logged.
    """

    code = "job-failed"

    def __init__(
        self,
        message: str,
        *,
        failure_code: str,
        advice: str = "",
        found: Mapping[str, Fact] | None = None,
        **facts: Fact,
    ) -> None:
        """Keep the trainer's code, advice and facts beside its sentence."""
        super().__init__(message, failure_code=failure_code, **facts)
        self.failure_code = failure_code
        self.advice = advice
        self.found = dict(found or {})


class JobTimedOutError(JobError):
    """A job did not end in its time; the trainer was stopped."""

    code = "job-timed-out"


class TrainerDiedError(JobError):
    """The trainer's process ended, or hung, without closing its job, and starting it again did not help.

    Attributes:
        advice: what the site's operator may do about it.
    """

    code = "trainer-died"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(f"{message}. {advice}", **facts)
        self.advice = advice


class TrainerAbsentError(JobError):
    """No trainer serves the jobs folder, or none that is alive.

    Attributes:
        advice: what the site's operator may do about it.
    """

    code = "trainer-absent"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(f"{message}. {advice}", **facts)
        self.advice = advice


class RunnerError(JobError):
    """A trainer cannot be started as ``runner`` in ``site.yaml`` says.

    Attributes:
        advice: what the site's operator may do about it.
    """

    code = "runner-error"

    def __init__(self, message: str, *, advice: str, **facts: Fact) -> None:
        """Keep the advice beside the sentence."""
        super().__init__(f"{message}. {advice}", **facts)
        self.advice = advice


class EngineUnavailableError(RunnerError):
    """The container engine, or the cluster, does not answer, or does not let this agent in."""

    code = "engine-unavailable"


class ImageMismatchError(RunnerError):
    """The trainer's image is not the one that is named, by its digest."""

    code = "image-mismatch"


class GpuUnavailableError(RunnerError):
    """A GPU was asked for, and there is none that a trainer can be given."""

    code = "gpu-unavailable"
