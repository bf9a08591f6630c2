"""What can go wrong with a backup.

CoordinatorError                      coordinator.errors
└── BackupError
├── BackupExistsError             the file is there; it is not overwritten
├── BackupDiskFullError           no room for it; nothing is left of it
├── BackupIncompleteError         a blob that rows name is not in the store
├── BackupInvalidError            it is not whole, was altered, or is not one
├── BackupUnreadableError         the passphrase does not open its keys, or a key is missing
└── RestoreTargetError            the folder or the database is not empty
"""

from __future__ import annotations

from coordinator.errors import CoordinatorError


class BackupError(CoordinatorError):
    """Something of a backup."""

    code = "backup-error"


class BackupExistsError(BackupError):
    """The file is there already."""

    code = "backup-exists"


class BackupDiskFullError(BackupError):
    """There is no room where it is written; what was written of it is gone again."""

    code = "backup-disk-full"


class BackupIncompleteError(BackupError):
    """A blob that rows name is not in the store: the coordinator itself is damaged."""

    code = "backup-incomplete"


class BackupInvalidError(BackupError):
    """The file is no backup, is not whole, or was altered; nothing was restored."""

    code = "backup-invalid"


class BackupUnreadableError(BackupError):
    """The keys are not in it, or the passphrase does not open them."""

    code = "backup-unreadable"


class RestoreTargetError(BackupError):
    """There is something already where it would be restored to."""

    code = "restore-target"
