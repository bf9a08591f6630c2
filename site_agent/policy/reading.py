"""Strict reading of a policy document: every fault is collected with its path, so that one look mends them all.

Knows no rule of the policy: only mappings, lists, numbers and names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from site_agent.errors import SiteAgentError

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)

_SHOWN_LENGTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFault:
    """One thing that is wrong, and where."""

    path: str
    message: str

    def __str__(self) -> str:
        """Path, then sentence."""
        return f"{self.path}: {self.message}"


class PolicyFaultsError(SiteAgentError):
    """A policy document is not well formed.

    Attributes:
        faults: everything that is wrong with it.
        file_sha256: of the file that holds it; None where there is no file that can be read.
    """

    code = "policy-invalid"

    def __init__(self, faults: tuple[PolicyFault, ...], *, file_sha256: str | None = None) -> None:
        """Keep all faults."""
        listed = "; ".join(str(fault) for fault in faults)
        super().__init__(f"the policy has {len(faults)} fault(s): {listed}")
        self.faults = faults
        self.file_sha256 = file_sha256


@dataclass(slots=True, kw_only=True)
class SectionReader:
    """Reads one mapping of a document and notes what is wrong with it in the shared list of faults."""

    document: Mapping[str, object]
    path: str
    faults: list[PolicyFault]
    _known: set[str] = field(default_factory=set)

    def path_of(self, key: str) -> str:
        """The path of one of this section's keys."""
        return f"{self.path}.{key}" if self.path else key

    def note(self, key: str, message: str) -> None:
        """Note a fault of one key."""
        self.faults.append(PolicyFault(path=self.path_of(key), message=message))

    def has(self, key: str) -> bool:
        """Whether the key is there with a value; marks it as known."""
        self._known.add(key)
        return self.document.get(key) is not None

    def section(self, key: str) -> SectionReader:
        """The mapping under a key; an empty one when it is absent or no mapping."""
        value = self.document[key] if self.has(key) else {}
        return self._reader_of(key, value)

    def sections(self) -> Mapping[str, SectionReader]:
        """All members of this mapping, each of which must be a mapping (or nothing)."""
        members: dict[str, SectionReader] = {}
        for key, value in self.document.items():
            self._known.add(key)
            members[key] = self._reader_of(key, {} if value is None else value)
        return members

    def names(self, key: str) -> frozenset[str]:
        """A list of texts; the empty set when absent."""
        if not self.has(key):
            return frozenset()
        value = self.document[key]
        if not isinstance(value, list):
            self.note(key, "is not a list")
            return frozenset()
        names: set[str] = set()
        for index, item in enumerate(value):
            if isinstance(item, str) and item.strip():
                names.add(item.strip())
            else:
                self.faults.append(PolicyFault(path=f"{self.path_of(key)}[{index}]", message="is not a text"))
        return frozenset(names)

    def integer(self, key: str, *, default: int, at_least: int) -> int:
        """A whole number."""
        if not self.has(key):
            return default
        value = self.document[key]
        if isinstance(value, bool) or not isinstance(value, int):
            self.note(key, f"is not a whole number: {_shown(value)}")
            return default
        if value < at_least:
            self.note(key, f"is {value}, and must be at least {at_least}")
            return default
        return value

    def positive_number(self, key: str) -> float | None:
        """A finite number above zero, or None when absent."""
        if not self.has(key):
            return None
        value = self.document[key]
        # YAML 1.1 reads 1e-6 as a text: the figure is meant all the same.
        if isinstance(value, str):
            value = _number_from_text(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            self.note(key, f"is not a number above zero: {_shown(self.document[key])}")
            return None
        return float(value)

    def choice(self, key: str, *, default: ChoiceT) -> ChoiceT:
        """One of the closed list of words to which ``default`` belongs."""
        if not self.has(key):
            return default
        value = self.document[key]
        words = type(default)
        if not isinstance(value, str) or value not in {word.value for word in words}:
            self.note(key, f"is {_shown(value)}, and must be one of: {', '.join(words)}")
            return default
        return words(value)

    def text(self, key: str) -> str | None:
        """A text, or None when absent."""
        if not self.has(key):
            return None
        value = self.document[key]
        if not isinstance(value, str):
            self.note(key, f"is not a text (put it in quotes): {_shown(value)}")
            return None
        return value

    def refuse_unknown(self) -> None:
        """Note every key that nobody asked for: a misspelt rule must not be a rule that is not there."""
        for key in sorted(set(self.document) - self._known):
            self.note(key, f"is not a known key; known here: {', '.join(sorted(self._known)) or 'none'}")

    def _reader_of(self, key: str, value: object) -> SectionReader:
        document = mapping_or_fault(value, path=self.path_of(key), faults=self.faults)
        return SectionReader(document=document, path=self.path_of(key), faults=self.faults)


def mapping_or_fault(value: object, *, path: str, faults: list[PolicyFault]) -> Mapping[str, object]:
    """The value as a mapping with text keys; notes a fault and returns an empty one where it is not."""
    if not isinstance(value, Mapping):
        faults.append(PolicyFault(path=path or "(document)", message="is not a mapping of keys to values"))
        return {}
    document: dict[str, object] = {}
    for key, member in value.items():
        if isinstance(key, str):
            document[key] = member
        else:
            faults.append(PolicyFault(path=path or "(document)", message=f"has a key that is no text: {_shown(key)}"))
    return document


def _number_from_text(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN_LENGTH]
