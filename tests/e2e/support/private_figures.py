"""Looks for one site's own figures in recorded messages, in every form in which a number could travel.

Decodes each protobuf message by its type, field by field; inside byte fields it follows packed fields, JSON and signed
bodies down to the leaves, and compares every number and every eight bytes with the figures.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from fl_protocol.packing import PackedBytesInvalidError, unpack

FLOATS_THAT_ARE_NO_FIGURES = frozenset({"wait_s", "retry_after_s", "check_in_after_s"})
"""Durations that both ends choose, or the coordinator alone; every other floating-point field would be suspect."""

_MANY_BYTES = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedMessage:
    """One message as it passed a site's channel."""

    method: str
    direction: str
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything that one demonstration recorded."""

    messages: tuple[RecordedMessage, ...]
    figures: Mapping[str, float]


def read_recording(folder: Path) -> Recording:
    """Read every process's file. The wire modules must be imported, so that the types are known."""
    import fl_protocol.wire.v1.enrolment_pb2
    import fl_protocol.wire.v1.round_pb2
    import fl_protocol.wire.v1.run_pb2  # noqa: F401 # registers its types

    messages: list[RecordedMessage] = []
    figures: dict[str, float] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "figures" in record:
                prefix = f"{file.stem}/{record['job']}"
                figures.update({f"{prefix}/{name}": value for name, value in record["figures"].items()})
                continue
            kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(record["type"]))
            message = kind.FromString(base64.b64decode(record["body"]))
            messages.append(RecordedMessage(method=record["method"], direction=record["direction"], message=message))
    return Recording(messages=tuple(messages), figures=figures)


def found_figures(message: Message, figures: Mapping[str, float]) -> list[str]:
    """Where a message holds one of the figures: field path and figure."""
    telling = {name: value for name, value in figures.items() if value not in (0, 1)}
    counts = {int(value): name for name, value in telling.items() if value == int(value) and value > 99}
    reals = {name: value for name, value in telling.items() if value != int(value)}
    patterns = {struct.pack(form, value): name for name, value in telling.items() for form in ("<d", ">d")}
    found: list[str] = []
    for path, leaf in leaves(message, ""):
        if isinstance(leaf, bytes):
            found += [f"{path}: {name}" for pattern, name in patterns.items() if pattern in leaf]
        elif isinstance(leaf, float) and leaf != int(leaf):
            found += [f"{path}: {name}" for name, value in reals.items() if abs(leaf - value) <= 1e-6 * abs(value)]
        elif int(leaf) in counts:
            found.append(f"{path}: {counts[int(leaf)]}")
    return found


def float_fields(message: Message) -> set[str]:
    """The names of the floating-point fields that are set anywhere in a message."""
    found: set[str] = set()
    for field, value in message.ListFields():
        if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
            found.add(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                found |= float_fields(item)
    return found


def leaves(value: object, path: str) -> Iterator[tuple[str, bytes | int | float]]:
    """Every number and every string of bytes in a value, with the path to it."""
    match value:
        case Message():
            for field, content in value.ListFields():
                yield from leaves(list(content) if field.is_repeated else content, f"{path}.{field.name}")
        case list() | tuple():
            for index, item in enumerate(value):
                yield from leaves(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                yield from leaves(item, f"{path}.{key}")
        case bool() | None:
            return
        case int() | float():
            yield path, value
        case str():
            yield from leaves(value.encode(), path)
        case bytes():
            yield path, value
            yield from _inside(value, path)


def _inside(data: bytes, path: str) -> Iterator[tuple[str, bytes | int | float]]:
    """What bytes hold, if they are JSON, a number, or packed fields."""
    if data[:1] in (b"{", b"["):
        try:
            yield from leaves(json.loads(data), f"{path}{{json}}")
        except ValueError:
            pass
        else:
            return
    if len(data) in (4, 8):
        yield f"{path}{{number}}", int.from_bytes(data, "big")
        return
    if 8 <= len(data) <= _MANY_BYTES or data[:2] == b"\0\0":
        try:
            fields = unpack(data)
        except PackedBytesInvalidError:
            return
        for index, field in enumerate(fields):
            yield from leaves(field, f"{path}{{{index}}}")
