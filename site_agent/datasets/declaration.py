"""The YAML file by which a data owner registers a dataset. Reads no data, only the declaration of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from site_agent.datasets.errors import DatasetDeclarationError

FORMATS = frozenset({"jsonl"})
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEYS = frozenset({"name", "path", "format", "purposes", "description"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDeclaration:
    """What the owner says of a dataset. ``path`` is absolute."""

    name: str
    path: Path
    format: str
    purposes: tuple[str, ...]
    description: str | None = None


def load_declaration(file: Path) -> DatasetDeclaration:
    """Read a declaration; a relative ``path`` is relative to the declaration's own folder.

    Raises:
        DatasetDeclarationError: the file is missing, no YAML, or has faults; all are listed.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetDeclarationError((f"{file} is not there",)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetDeclarationError((f"{file.name} cannot be read: {error}",)) from error
    except yaml.YAMLError as error:
        raise DatasetDeclarationError((f"{file.name} is no YAML: {' '.join(str(error).split())}",)) from error
    if not isinstance(document, dict):
        raise DatasetDeclarationError((f"{file.name} is not a mapping of keys to values",))
    return parse_declaration(document, folder=file.absolute().parent)


def parse_declaration(document: Mapping[str, object], *, folder: Path) -> DatasetDeclaration:
    """Check a declaration.

    Raises:
        DatasetDeclarationError: it has faults; all are listed.
    """
    faults: list[str] = []
    texts = {key: _text(document, key, faults) for key in ("name", "path", "format", "description")}
    name, path, data_format = texts["name"], texts["path"], texts["format"] or "jsonl"
    if name is None or _NAME.fullmatch(name) is None:
        faults.append("name: is 1 to 63 lower-case letters, digits and hyphens")
    if path is None:
        faults.append("path: is missing")
    if data_format not in FORMATS:
        faults.append(f"format: is {data_format!r}, and must be one of: {', '.join(sorted(FORMATS))}")
    purposes = _purposes(document.get("purposes"), faults)
    known = ", ".join(sorted(_KEYS))
    unknown = sorted(str(key) for key in document if key not in _KEYS)
    faults.extend(f"{key}: is not a known key; known here: {known}" for key in unknown)
    if faults or name is None or path is None:
        raise DatasetDeclarationError(tuple(faults))
    return DatasetDeclaration(
        name=name,
        path=(folder / path).absolute(),
        format=data_format,
        purposes=purposes,
        description=texts["description"],
    )


def _text(document: Mapping[str, object], key: str, faults: list[str]) -> str | None:
    value = document.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{key}: is not a text")
        return None
    return value


def _purposes(value: object, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        faults.append("purposes: is a list of at least one purpose, for example [research]")
        return ()
    purposes = tuple(sorted({item.strip() for item in value if isinstance(item, str) and item.strip()}))
    if len(purposes) != len(value):
        faults.append("purposes: holds something empty, repeated or that is no text")
    return purposes
