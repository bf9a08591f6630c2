"""What a broken or hostile site might send: random bytes, and messages of a real run with something wrong in them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fl_protocol.wire.v1 import enrolment_pb2, round_pb2, run_pb2

RECORDED = Path(__file__).parents[2] / "vectors" / "wire" / "0.1.0" / "transcript.json"
ENROL = "Enrol"
_FILES = (enrolment_pb2, round_pb2, run_pb2)
_EDGES = (0, 1, 2, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_FRACTIONS = (0.0, -0.0, -1.0, 1e-308, 1e308, float("nan"), float("inf"), float("-inf"))
_SIGNED = {FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1)}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1, FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1}


@dataclass(frozen=True)
class Method:
    """One call of the protocol, and what was really said in it; no seed where the recorded run never used it."""

    path: str
    request: type[Message]
    is_upload: bool
    is_download: bool
    seeds: tuple[tuple[bytes, ...], ...]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@cache
def transcript() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_bytes())
    return found


@cache
def all_methods() -> tuple[Method, ...]:
    """Every method of every service, as the stubs of this version know them."""
    found = []
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            found += [_method(service.full_name, method) for method in service.methods]
    return tuple(found)


def _method(service: str, method: MethodDescriptor) -> Method:
    path = f"/{service}/{method.name}"
    said = [record["requests"] for record in transcript()["records"] if record.get("path") == path]
    seeds = [tuple(base64.b64decode(part) for part in parts) for parts in said]
    # Long polls wait: these ask for no wait, so that a call is over when it is answered.
    return Method(
        path=path,
        request=GetMessageClass(method.input_type),
        is_upload=method.client_streaming,
        is_download=method.server_streaming,
        seeds=tuple(dict.fromkeys(_without_wait(method.name, parts) for parts in seeds))
        or _seeds_never_recorded(method.name),
    )


def _without_wait(name: str, parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if name != "PollAssignment":
        return parts
    request = round_pb2.PollAssignmentRequest.FromString(parts[0])
    request.wait_s = 0.0
    return (request.SerializeToString(),)


def _seeds_never_recorded(name: str) -> tuple[tuple[bytes, ...], ...]:
    """Of calls that no site of the recorded run made, or that its version did not have: the right form, no right."""
    requests = {method: record for record in _recorded("ShareKeys", "SubmitApproval") for method in [record[0]]}
    share = round_pb2.ShareKeysRequest.FromString(requests["ShareKeys"][1])
    approval = run_pb2.SubmitApprovalRequest.FromString(requests["SubmitApproval"][1])
    withdrawal = run_pb2.WithdrawRequest(run_id=approval.run_id, statement=approval.statement)
    report = run_pb2.ReportDatasetWithdrawnRequest(statement=approval.statement)
    report.statement.body = (
        b'{"at":"2026-03-01T12:00:00.000000Z","dataset":"medical-qa","dataset_sha256":null,'
        b'"reason":"unspecified","site_id":"a-site"}'
    )
    made: dict[str, Message] = {
        "Complain": round_pb2.ComplainRequest(exchange=share.exchange, complaint=share.deal),
        "Withdraw": withdrawal,
        "ReportDatasetWithdrawn": report,
        "GetSumEvidence": round_pb2.GetSumEvidenceRequest(run_id=approval.run_id, round_index=0),
        "GetMaskedChunk": round_pb2.GetMaskedChunkRequest(
            run_id=approval.run_id, round_index=0, site_id="a-site", chunk_index=0
        ),
        "GetMaskedWindow": round_pb2.GetMaskedWindowRequest(
            run_id=approval.run_id, round_index=0, first_chunk=0, n_chunks=2
        ),
        "GetAuditConsistency": round_pb2.GetAuditConsistencyRequest(
            ranges=[round_pb2.AuditRange(from_size=1, to_size=3)]
        ),
        "ChallengeRenewal": enrolment_pb2.ChallengeRenewalRequest(client_nonce=bytes(32), signing_key_sha256=bytes(32)),
        "Renew": enrolment_pb2.RenewRequest(
            tls_csr_der=b"0", statement=approval.statement, challenge=approval.statement, challenge_signature=b"0"
        ),
        "CheckIn": enrolment_pb2.CheckInRequest(statement=approval.statement, agent_version="0.2"),
    }
    return ((made[name].SerializeToString(),),) if name in made else ()


def _recorded(*names: str) -> Iterator[tuple[str, bytes]]:
    for record in transcript()["records"]:
        name = record.get("path", "").rpartition("/")[2]
        if name in names:
            yield name, base64.b64decode(record["requests"][0])


class Mutator:
    """Follows from its seed: the same calls each time."""

    def __init__(self, seed: int, methods: tuple[Method, ...]) -> None:
        self._random = random.Random(seed)
        self._methods = methods

    def calls(self, n_calls: int) -> Iterator[tuple[Method, tuple[bytes, ...]]]:
        """So many calls, each method as often as the others."""
        for index in range(n_calls):
            method = self._methods[index % len(self._methods)]
            yield method, self.request(method)

    def request(self, method: Method) -> tuple[bytes, ...]:
        """One request, or the messages of one stream."""
        draw, choose = self._random.random(), self._random.choice
        parts = choose(method.seeds) if method.seeds else (b"",)
        if draw < 0.10:
            return (self.noise(256),)
        if draw < 0.35:
            return self._in_one(parts, self.flip)
        if draw < 0.50:
            return self._in_one(parts, self.cut)
        if draw < 0.90:
            return self._in_one(parts, lambda data: self._in_a_field(method.request, data))
        if draw < 0.95 and method.is_upload:
            return tuple(self._random.sample(parts, k=self._random.randint(0, len(parts))))
        other = choose(self._methods)
        return (self.flip(choose(other.seeds)[0]),) if other.seeds else (self.noise(64),)

    def _in_one(self, parts: tuple[bytes, ...], change: Any) -> tuple[bytes, ...]:
        where = self._random.randrange(len(parts))
        return tuple(change(part) if index == where else part for index, part in enumerate(parts))

    def noise(self, longest: int) -> bytes:
        """Bytes without any sense."""
        return self._random.randbytes(self._random.randint(0, longest))

    def flip(self, data: bytes) -> bytes:
        """A few bytes are others."""
        changed = bytearray(data)
        for _ in range(self._random.randint(1, 6) if changed else 0):
            changed[self._random.randrange(len(changed))] = self._random.randrange(256)
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        """Something is missing, twice there, or too much."""
        first, second = sorted(self._random.randint(0, len(data)) for _ in range(2))
        match self._random.randrange(4):
            case 0:
                return data[:first]
            case 1:
                return data[:first] + data[second:]
            case 2:
                return data[:second] + data[first:]
            case _:
                return data[:first] + self.noise(64) + data[first:]

    def _in_a_field(self, kind: type[Message], data: bytes) -> bytes:
        message = kind.FromString(data)
        self._change(message)
        return message.SerializeToString()

    def _change(self, message: Message) -> None:
        fields = list(message.DESCRIPTOR.fields)
        if not fields:
            return
        field = self._random.choice(fields)
        if field.is_repeated:
            self._change_list(message, field)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            inner = getattr(message, field.name)
            if self._random.random() < 0.15:
                message.ClearField(field.name)
            else:
                self._change(inner)
        else:
            setattr(message, field.name, self._value(field, getattr(message, field.name)))

    def _change_list(self, message: Message, field: FieldDescriptor) -> None:
        found = getattr(message, field.name)
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            # Lists of bytes are hashes.
            held = bytes(32) if field.type == FieldDescriptor.TYPE_BYTES else field.default_value or ""
            found.extend(self._value(field, held) for _ in range(self._random.choice((1, 30))))
            return
        for _ in range(self._random.choice((1, 3, 1100))):
            self._change(found.add())

    def _value(self, field: FieldDescriptor, held: Any) -> Any:
        kind, choose = field.cpp_type, self._random.choice
        if kind in _SIGNED:
            low, high = _SIGNED[kind]
            return max(low, min(high, choose((-1, low, *_EDGES))))
        if kind in _UNSIGNED:
            return choose(_EDGES) & _UNSIGNED[kind]
        if field.type == FieldDescriptor.TYPE_BYTES:
            return choose((b"", self.flip(held), self.cut(held), self.noise(80), held * 2))
        others = {
            FieldDescriptor.CPPTYPE_BOOL: (not held,),
            FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 7, 2**31 - 1, -1),
            FieldDescriptor.CPPTYPE_DOUBLE: _FRACTIONS,
            FieldDescriptor.CPPTYPE_FLOAT: _FRACTIONS,
        }
        texts = ("", "\0", "run-" + "a" * 26, "é" * 40, "x" * 9000, "../../etc", str(held)[:-1])
        return choose(others.get(kind, texts))
