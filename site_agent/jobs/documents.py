"""Files and documents of a job directory: a file appears whole or not at all, and a document is read by typed fields.

This module knows neither jobs nor torch; it knows bytes, renames and JSON.

    WardroundError
    └── JobDirectoryError
        ├── JobFileMissingError     a file of the contract is not there
        └── JobFileInvalidError     it is there and is not what the contract says
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, cast

from fl_protocol.errors import WardroundError
from site_agent.jobs.held_folder import FileTooLargeError, JobsFolderUnsafeError, file_mode, read_bounded

Member = TypeVar("Member", bound=StrEnum)

_MAX_DOCUMENT_BYTES = 16 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class JobDirectoryError(WardroundError):
    """A job directory breaks its contract."""

    code = "job-directory-error"


class JobFileMissingError(JobDirectoryError):
    """A file of the contract is not there."""

    code = "job-file-missing"


class JobFileInvalidError(JobDirectoryError):
    """A file of the contract is not what the contract says."""

    code = "job-file-invalid"


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside it, to the disk, by one rename, then the folder to the disk.

    Its mode is 0600, or 0660 in a folder that two users share by their group (``folder_mode``). A link that stands
    where it is written beside is not followed. Nothing stays beside it when the writing fails: on a full disk, that
    would be the rest of it.
    """
    write_file_parts(path, (content,))


def write_file_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """As ``write_file``, of parts that need not be in memory at once."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    mode = file_mode(path.parent.stat().st_mode)
    try:
        with os.fdopen(os.open(beside, _NEW_FILE, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_document(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        JobFileInvalidError: a figure is NaN or infinite, for which JSON has no word.
    """
    try:
        text = json.dumps(document, indent=1, allow_nan=False)
    except ValueError as error:
        raise JobFileInvalidError("a figure in the document is not finite", file=path.name) from error
    write_file(path, (text + "\n").encode())


def read_file(path: Path, max_bytes: int) -> bytes:
    """Read a file of a job directory: a regular one, no larger than it may be.

    Raises:
        JobFileMissingError: there is no such file.
        JobFileInvalidError: it is no regular file, or too large.
    """
    try:
        return read_bounded(path, max_bytes)
    except FileNotFoundError as error:
        raise JobFileMissingError("a file of the job directory is missing", file=path.name) from error
    except (JobsFolderUnsafeError, FileTooLargeError) as error:
        raise JobFileInvalidError(error.message, **{"file": path.name, **error.facts}) from error


def json_from_bytes(content: bytes) -> object:
    """Read JSON that anybody may have written.

    Raises:
        ValueError: it is none, holds NaN or an infinity, or is nested deeper than anything that we write.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        message = "nested too deeply"
        raise ValueError(message) from error


def _refuse_constant(name: str) -> float:
    message = f"no figure: {name}"
    raise ValueError(message)


def read_document(path: Path, max_bytes: int = _MAX_DOCUMENT_BYTES) -> Mapping[str, object]:
    """Read a JSON object.

    Raises:
        JobFileMissingError: there is no such file.
        JobFileInvalidError: it is no regular file, too large, or no JSON object.
    """
    content = read_file(path, max_bytes)
    try:
        document = json_from_bytes(content)
    except ValueError as error:
        raise JobFileInvalidError("a file of the job directory is no JSON", file=path.name) from error
    if not isinstance(document, dict):
        raise JobFileInvalidError("a file of the job directory holds one JSON object", file=path.name)
    return cast("Mapping[str, object]", document)


def read_member(kinds: type[Member], text: str, *, field_name: str) -> Member:
    """The member of an enumeration that ``text`` names.

    Raises:
        JobFileInvalidError: it names none.
    """
    try:
        return kinds(text)
    except ValueError as error:
        known = ", ".join(kinds)
        raise JobFileInvalidError(f"expected one of: {known}", field=field_name, value=text[:40]) from error


class DocumentReader:
    """Typed access to one JSON object. Invariant: whatever a method returns has the type that it names."""

    def __init__(self, document: object, file: str, *, path: str = "") -> None:
        """Keep the object, and where it stands, for errors.

        Raises:
            JobFileInvalidError: it is no JSON object.
        """
        self._file = file
        self._path = path
        if not isinstance(document, Mapping):
            raise self._fault("an object", "")
        self._document = cast("Mapping[str, object]", document)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Refuse keys that are not ``known``.

        Raises:
            JobFileInvalidError: there is one.
        """
        unknown = sorted(set(self._document) - set(known))
        if unknown:
            listed = ", ".join(unknown)[:200]
            raise JobFileInvalidError("this version does not know a key of the document", file=self._file, field=listed)

    def text(self, key: str, *, default: str | None = None) -> str:
        """The text under ``key``."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._fault("text", key)
        return value

    def optional_text(self, key: str) -> str | None:
        """The text under ``key``, or None where it is null or absent."""
        return None if self._document.get(key) is None else self.text(key)

    def integer(self, key: str, *, default: int | None = None) -> int:
        """The integer under ``key``."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._fault("an integer", key)
        return value

    def optional_integer(self, key: str) -> int | None:
        """The integer under ``key``, or None where it is null or absent."""
        return None if self._document.get(key) is None else self.integer(key)

    def is_set(self, key: str) -> bool:
        """Whether the truth value under ``key`` is true; an absent one is not."""
        value = self._value(key, default=False)
        if not isinstance(value, bool):
            raise self._fault("true or false", key)
        return value

    def number(self, key: str) -> float:
        """The number under ``key``; JSON writes some that no float holds, such as 1e999, or 1 and 400 zeros."""
        value = self._value(key, None)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._fault("a number", key)
        try:
            number = float(value)
        except OverflowError as error:
            raise self._fault("a number that a float holds", key) from error
        if not math.isfinite(number):
            raise self._fault("a number that a float holds", key)
        return number

    def optional_number(self, key: str) -> float | None:
        """The number under ``key``, or None where it is null or absent."""
        return None if self._document.get(key) is None else self.number(key)

    def optional_mapping(self, key: str) -> Mapping[str, object] | None:
        """The object under ``key``, or None where it is null or absent."""
        value = self._document.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._fault("an object", key)
        return value

    def section(self, key: str) -> DocumentReader | None:
        """A reader of the object under ``key``, or None where it is null or absent."""
        value = self._document.get(key)
        return None if value is None else DocumentReader(value, self._file, path=f"{self._path}{key}.")

    def figures(self, key: str) -> Mapping[str, float]:
        """The object under ``key`` whose values are all numbers; empty where it is null or absent."""
        section = self.section(key)
        if section is None:
            return {}
        return {name: section.number(name) for name in self.optional_mapping(key) or {}}

    def _value(self, key: str, default: object) -> object:
        value = self._document.get(key)
        return default if value is None else value

    def _fault(self, expected: str, key: str) -> JobFileInvalidError:
        message = f"a field of the document is not {expected}"
        return JobFileInvalidError(message, file=self._file, field=f"{self._path}{key}".rstrip("."))
