"""When a backup was made from a folder last: one small file beside the configuration, for ``doctor``. No evidence."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from coordinator.ca.key_files import replace_file

LAST_BACKUP = "last-backup.json"


def note_backup(directory: Path, *, made_at: datetime) -> bool:
    """Write it down; False where the folder cannot be written, which spoils no backup."""
    try:
        content = json.dumps({"made_at": made_at.isoformat()}) + "\n"
        replace_file(directory / LAST_BACKUP, content.encode(), mode=0o644)
    except OSError:
        return False
    return True


def read_last_backup(directory: Path) -> datetime | None:
    """When it was; None where nobody knows."""
    try:
        made_at = datetime.fromisoformat(json.loads((directory / LAST_BACKUP).read_text(encoding="utf-8"))["made_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made_at if made_at.tzinfo is not None else None
