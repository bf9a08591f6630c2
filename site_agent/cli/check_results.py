"""What a check of ``doctor`` says: one fact about this machine, and what to do when it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check's outcome."""

    name: str
    health: Health
    message: str
    advice: str = ""
