"""Everything that is wrong with a document, said at once: each fault with the path of the key that it is about.

Knows no key of any document; the readers of a document ask ``Reader`` for what they need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import IdentifierInvalidError, Sha256Hex, sha256_hex_from_text

_Choice = TypeVar("_Choice", bound=StrEnum)

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REQUIRED = "is required"
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a document."""

    path: str
    message: str

    def __str__(self) -> str:
        """``path: message``."""
        return f"{self.path}: {self.message}"


class RunSpecFaultsError(ProtocolError):
    """A RunSpec was refused whole; ``faults`` lists everything that is wrong with it."""

    code = "run-spec-invalid"

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        listed = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"the run specification has {len(self.faults)} fault(s):\n{listed}")
        self.facts["n_faults"] = len(self.faults)

    def __str__(self) -> str:
        """The list of faults."""
        return self.message


class Reader:
    """Reads the keys of one mapping, in place of every wrong value a harmless one, and remembers each fault.

    Invariant: a reader that found no fault returned the document's values (or their defaults) and nothing else.
    """

    def __init__(self, document: object, *, path: str, faults: list[Fault]) -> None:
        """Take what should be a mapping at ``path``; faults are added to the list that all readers share."""
        self._path = path
        self._faults = faults
        self._known: set[str] = set()
        self._document: Mapping[object, object] = {}
        if isinstance(document, Mapping):
            self._document = document
        else:
            self._faults.append(Fault(path=path or "(document)", message="must be a mapping"))

    def fault(self, key: str, message: str) -> None:
        """Note that something is wrong with ``key``."""
        self._faults.append(Fault(path=self._at(key), message=message))

    def finish(self) -> None:
        """Refuse every key that nobody asked for."""
        for key in self._document:
            if key not in self._known:
                name = key if isinstance(key, str) else repr(key)
                self._faults.append(Fault(path=self._at(name[:80]), message="is not a known key"))

    def has(self, key: str) -> bool:
        """Whether the document has the key with a value other than null."""
        return self._document.get(key) is not None

    def is_empty(self, key: str) -> bool:
        """Whether the document has the key with an empty list."""
        return self._document.get(key) in ([], ())

    def skip(self, key: str) -> None:
        """Know the key without reading it."""
        self._known.add(key)

    def section(self, key: str, *, is_required: bool = True) -> Reader:
        """A reader of the mapping under ``key``; of an empty one where it may be left out."""
        value = self._take(key)
        if value is _ABSENT:
            if not is_required:
                return Reader({}, path=self._at(key), faults=self._faults)
            # One fault for the section, none for each key that it should have had.
            self.fault(key, _REQUIRED)
            return Reader({}, path=self._at(key), faults=[])
        if not isinstance(value, Mapping):
            self.fault(key, "must be a mapping")
            return Reader({}, path=self._at(key), faults=[])
        return Reader(value, path=self._at(key), faults=self._faults)

    def items(self, key: str) -> list[object]:
        """The list under ``key``, not empty."""
        value = self._take(key)
        if value is _ABSENT:
            self.fault(key, _REQUIRED)
            return []
        if not isinstance(value, list | tuple):
            self.fault(key, "must be a list")
            return []
        if not value:
            self.fault(key, "must not be empty")
        return list(value)

    def sections(self, key: str, *, most: int) -> list[Reader]:
        """A reader of each mapping in the list under ``key``, which is not empty; the caller finishes each."""
        items = self.items(key)
        if len(items) > most:
            self.fault(key, f"must be at most {most}")
        return [
            Reader(item, path=self._at(f"{key}[{index}]"), faults=self._faults)
            for index, item in enumerate(items[:most])
        ]

    def texts(self, key: str, *, most: int, longest: int) -> tuple[str, ...]:
        """The sentences in the list under ``key``, as ``text`` reads one; not empty, none twice."""
        items = self.items(key)
        if len(items) > most:
            self.fault(key, f"must be at most {most}")
        found: list[str] = []
        for index, item in enumerate(items[:most]):
            name = f"{key}[{index}]"
            if not isinstance(item, str) or not item.strip() or not item.isprintable():
                self.fault(name, "must be one line of printable text")
            elif len(item) > longest:
                self.fault(name, f"must not be longer than {longest} characters")
            elif item in found:
                self.fault(name, "is there twice")
            else:
                found.append(item)
        return tuple(found)

    def text(self, key: str, *, longest: int) -> str:
        """A sentence: printable text, not blank."""
        value = self._take(key)
        if value is _ABSENT:
            self.fault(key, _REQUIRED)
        elif not isinstance(value, str):
            self.fault(key, "must be text")
        elif not value.strip():
            self.fault(key, "must not be blank")
        elif len(value) > longest:
            self.fault(key, f"must not be longer than {longest} characters")
        elif not value.isprintable():
            self.fault(key, "must be one line of printable text")
        else:
            return value
        return "-"

    def label(self, key: str) -> str:
        """A name: letters, digits, dots, hyphens and underscores."""
        value = self._take(key)
        if value is _ABSENT:
            self.fault(key, _REQUIRED)
        elif not isinstance(value, str) or _LABEL.fullmatch(value) is None:
            self.fault(key, "must be 1 to 128 letters, digits, dots, hyphens or underscores, starting with no mark")
        else:
            return value
        return "-"

    def constant(self, key: str, expected: str) -> None:
        """A key that has one value in this version of the format."""
        value = self._take(key)
        if value is _ABSENT:
            self.fault(key, _REQUIRED)
        elif value != expected:
            self.fault(key, f"must be {expected!r}")

    def choice(self, key: str, choices: type[_Choice], *, default: _Choice | None = None) -> _Choice:
        """One of the values that this version has. Without a default the key is required."""
        first = next(iter(choices))
        value = self._take(key)
        if value is _ABSENT:
            if default is None:
                self.fault(key, _REQUIRED)
            return default or first
        if not isinstance(value, str):
            self.fault(key, "must be text")
        elif value not in set(choices):
            admitted = ", ".join(choices)
            self.fault(key, f"{value[:80]!r} is not in this version (it has: {admitted})")
        else:
            return choices(value)
        return first

    def integer(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """A whole number in ``low .. high``; true and false are no numbers."""
        value = self._take(key)
        if value is _ABSENT:
            if default is None:
                self.fault(key, _REQUIRED)
            return low if default is None else default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, "must be a whole number")
        elif value < low:
            self.fault(key, f"must be at least {low}")
        elif value > high:
            self.fault(key, f"must be at most {high}")
        else:
            return value
        return low

    def only_integer(self, key: str, expected: int) -> int:
        """A whole number that has one value in this version; it may be left out."""
        value = self._take(key)
        if value is not _ABSENT and (isinstance(value, bool) or not isinstance(value, int)):
            self.fault(key, "must be a whole number")
        elif value not in (_ABSENT, expected):
            self.fault(key, f"{value} is not in this version (it has: {expected})")
        return expected

    def number(
        self, key: str, *, above: float | None = None, low: float | None = None, below: float | None = None,
        high: float | None = None, default: float | None = None,
    ) -> float:  # fmt: skip
        """A finite number; ``above`` and ``below`` are exclusive, ``low`` and ``high`` inclusive."""
        fallback = 1.0 if default is None else default
        value = self._take(key)
        if value is _ABSENT:
            if default is None:
                self.fault(key, _REQUIRED)
            return fallback
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(key, "must be a number")
            return fallback
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.fault(key, "must be finite")
        elif above is not None and not number > above:
            self.fault(key, f"must be greater than {above:g}")
        elif low is not None and not number >= low:
            self.fault(key, f"must be at least {low:g}")
        elif below is not None and not number < below:
            self.fault(key, f"must be less than {below:g}")
        elif high is not None and not number <= high:
            self.fault(key, f"must be at most {high:g}")
        else:
            return number
        return fallback

    def digest(self, key: str, *, is_required: bool = True) -> Sha256Hex | None:
        """A SHA-256 in hexadecimal; None where it may be left out, or is null."""
        value = self._take(key)
        if value is _ABSENT or value is None:
            if is_required:
                self.fault(key, _REQUIRED)
            return None
        try:
            return sha256_hex_from_text(value if isinstance(value, str) else "")
        except IdentifierInvalidError:
            self.fault(key, "must be a SHA-256 digest: 64 lower-case hexadecimal characters")
            return None

    def switch(self, key: str) -> bool | None:
        """True or false, or None where the document does not say."""
        value = self._take(key)
        if value is _ABSENT or value is None:
            return None
        if isinstance(value, bool):
            return value
        self.fault(key, "must be true or false")
        return None

    def is_true(self, key: str) -> None:
        """A switch that this version has in one position only."""
        value = self._take(key)
        if value is _ABSENT or value is True:
            return
        self.fault(key, "false is not in this version" if value is False else "must be true")

    def _take(self, key: str) -> object:
        self._known.add(key)
        return self._document.get(key, _ABSENT)

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key
