"""Planted texts and keys, every form in which they could turn up somewhere, and the search for them.

A form is what a program makes of a text without meaning to hide it: its bytes in the encodings of files and protocols,
and the numbers that the tokenizer makes of it. What is compressed or encrypted on purpose cannot be found like this;
the search is of what was written before that, or decoded from it.
"""

from __future__ import annotations

import base64
import json
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.tiny_model import make_tiny_tokenizer

_OVERLAP = 1 << 16
_READ_AT_ONCE = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Something that must stay where it is.

    Attributes:
        name: for a failure's message.
        forms: by name, the bytes that give it away.
        allowed: files in which it belongs.
    """

    name: str
    forms: Mapping[str, bytes]
    allowed: frozenset[Path] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A canary where it does not belong."""

    canary: str
    form: str
    place: str


def new_text(label: str) -> str:
    """A text with what escaping changes in it, around twelve random digits that nothing changes."""
    return f'{label} "{secrets.token_hex(6)}" ë/&'


def text_canary(name: str, text: str, *, allowed: Iterable[Path] = ()) -> Canary:
    """A planted text; its random core alone gives it away as well."""
    core = text.split('"')[1] if '"' in text else text
    forms = dict(_forms(core.encode(), prefix="core"))
    forms |= _forms(text.encode(), prefix="text")
    forms["core, utf-16-le"] = core.encode("utf-16-le")
    forms["core, utf-16-be"] = core.encode("utf-16-be")
    forms["text, json ascii"] = json.dumps(text)[1:-1].encode()
    forms["text, json"] = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    forms["text, json in json"] = json.dumps(json.dumps(text))[2:-2].encode()
    forms["text, url"] = quote(text, safe="").encode()
    forms["text, form"] = quote_plus(text).encode()
    forms["text, python"] = repr(text.encode())[2:-1].encode()
    tokens = make_tiny_tokenizer()(core, add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(core)
    for code, width in (("h", "16"), ("i", "32"), ("q", "64")):
        forms[f"core, tokens, {width} bits"] = struct.pack(f"<{len(tokens)}{code}", *tokens)
    forms["core, tokens, json"] = ",".join(map(str, tokens)).encode()
    forms["core, tokens, python"] = ", ".join(map(str, tokens)).encode()
    return Canary(name=name, forms=forms, allowed=frozenset(allowed))


def key_canary(file: Path, name: str) -> Canary:
    """A private key: its number, and the text of its file."""
    pem = file.read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    number = key.private_numbers().private_value.to_bytes(32, "big")
    forms = dict(_forms(number, prefix="number"))
    forms["number, little-endian"] = number[::-1]
    forms["number, decimal"] = str(int.from_bytes(number, "big")).encode()
    lines = [line for line in pem.splitlines() if not line.startswith(b"-----")]
    forms |= {f"pem line {index}": line for index, line in enumerate(lines) if len(line) == 64}
    return Canary(name=name, forms=forms, allowed=frozenset({file}))


def secret_canary(name: str, secret: str, *, allowed: Iterable[Path] = ()) -> Canary:
    """A token or a code."""
    return Canary(name=name, forms=dict(_forms(secret.encode(), prefix="secret")), allowed=frozenset(allowed))


def search_bytes(data: bytes, canaries: Iterable[Canary], place: str) -> Iterator[Sighting]:
    """Every form of every canary in some bytes."""
    for canary in canaries:
        for form, needle in canary.forms.items():
            if needle in data:
                yield Sighting(canary=canary.name, form=form, place=place)


def search_file(file: Path, canaries: Iterable[Canary]) -> Iterator[Sighting]:
    """Every form of every canary that does not belong into this file: in its content, and in its name."""
    strangers = [canary for canary in canaries if file not in canary.allowed]
    yield from search_bytes(str(file).encode(), strangers, f"the name of {file}")
    try:
        content = file.open("rb")
    except FileNotFoundError:
        # A job's folder is deleted when its round is over.
        return
    with content:
        kept = b""
        while block := content.read(_READ_AT_ONCE):
            yield from search_bytes(kept + block, strangers, str(file))
            kept = block[-_OVERLAP:]


def _forms(data: bytes, *, prefix: str) -> Iterator[tuple[str, bytes]]:
    yield prefix, data
    yield f"{prefix}, hex", data.hex().encode()
    yield f"{prefix}, HEX", data.hex().upper().encode()
    for start in range(3):
        # Wherever the data begins in what was encoded: without the letters that its neighbours have a part in.
        encoded = base64.b64encode(b"\0" * start + data)
        inner = encoded[-(-start * 8 // 6) : (start + len(data)) * 8 // 6]
        yield f"{prefix}, base64 at {start}", inner
        yield f"{prefix}, base64url at {start}", inner.replace(b"+", b"-").replace(b"/", b"_")
