"""Reading JSON that another program wrote: a value of the expected kind, or an error that names the key.

Knows no document of any interface; the rooms that read one say which keys they need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from wardround.errors import ResponseUnreadableError

Document = Mapping[str, object]


def document_from_text(text: str, *, source: str) -> Document:
    """The JSON object in ``text``.

    Raises:
        ResponseUnreadableError: it is no JSON, or no object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ResponseUnreadableError(f"{source} is no JSON", begins=text[:120]) from error
    return as_document(value, source=source)


def as_document(value: object, *, source: str) -> Document:
    """``value`` as an object with text keys."""
    if not isinstance(value, dict):
        raise ResponseUnreadableError(f"{source} is no JSON object")
    return value


def text_of(document: Document, key: str) -> str:
    """The text under ``key``."""
    value = document.get(key)
    if not isinstance(value, str):
        raise _missing(key, "text")
    return value


def optional_text_of(document: Document, key: str) -> str | None:
    """The text under ``key``; None where it is absent or null."""
    return None if document.get(key) is None else text_of(document, key)


def integer_of(document: Document, key: str) -> int:
    """The whole number under ``key``."""
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _missing(key, "a whole number")
    return value


def optional_number_of(document: Document, key: str) -> float | None:
    """The number under ``key``; None where it is absent or null."""
    value = document.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _missing(key, "a number")
    return float(value)


def texts_of(document: Document, key: str) -> tuple[str, ...]:
    """The texts in the list under ``key``; none where it is absent."""
    value = document.get(key) or []
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise _missing(key, "a list of texts")
    return tuple(value)


def documents_of(document: Document, key: str) -> tuple[Document, ...]:
    """The objects in the list under ``key``; none where it is absent."""
    value = document.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _missing(key, "a list of objects")
    return tuple(value)


def section_of(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The mapping under ``key``; an empty one where there is none, of which the reader of specifications complains."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _missing(key: str, kind: str) -> ResponseUnreadableError:
    message = f"the answer has no {key!r} that is {kind}"
    return ResponseUnreadableError(message, advice="Do both programs have the same version? See: wardround --version")
