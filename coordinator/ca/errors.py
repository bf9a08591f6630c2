"""What can be wrong with key files and codes; what is wrong with a request or a certificate says ``fl_protocol.pki``.

WardroundError
└── CaError
    ├── KeyFileMissingError           key_files: the file is not there
    ├── KeyFileExposedError           key_files: others may read or write it
    ├── KeyFileExistsError            key_files: it would be overwritten
    ├── KeyFileInvalidError           key_files, authority: it does not hold what its name says
    ├── RotationStepError             slot_files: this step does not follow
    ├── RotationWaitsError            the next step has to wait for sites
    └── EnrolmentCodeInvalidError     enrolment: the text is no enrolment code
"""

from __future__ import annotations

from fl_protocol.errors import WardroundError


class CaError(WardroundError):
    """Base of the errors of this room."""

    code = "ca-error"


class KeyFileMissingError(CaError):
    """A key or certificate file is not there."""

    code = "key-file-missing"


class KeyFileExposedError(CaError):
    """A private key can be read or written by every user of the machine."""

    code = "key-file-exposed"


class KeyFileExistsError(CaError):
    """A key file is already there and is never overwritten."""

    code = "key-file-exists"


class KeyFileInvalidError(CaError):
    """A file does not hold the key or certificate that it should."""

    code = "key-file-invalid"


class RotationStepError(CaError):
    """The step of a rotation that was asked for does not follow from where it stands."""

    code = "rotation-step"


class RotationWaitsError(CaError):
    """The next step of a rotation would cut sites off: it waits for them. Trying again later is right."""

    code = "rotation-waits"


class EnrolmentCodeInvalidError(CaError):
    """A text is not an enrolment code."""

    code = "enrolment-code-invalid"
