"""The program ``wardround-site`` with a recorder in it: every gRPC message, and what the trainer told the agent.

A composition for tests only; the product has no hook for it. Called like the program itself; writes into the folder
that ``WIRE_RECORD_DIR`` names, one file a process: a line a message (method, direction, protobuf type, bytes), and a
line a training job (the figures of this site alone, which no message may hold).
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

import site_agent.jobs.process as process_runner
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from fl_protocol.wire.blob_chunks import ChunkMessage
from site_agent.__main__ import main
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobFailure, JobResult, read_result

Passed = Message | ChunkMessage | bytes
CALL_KINDS = frozenset({"unary_unary", "unary_stream", "stream_unary", "stream_stream"})


def type_of(method: str, direction: str) -> type[Message]:
    """What a method takes or gives, from the descriptors: some calls hand bytes through."""
    service, name = method.removeprefix("/").split("/")
    found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    return message_factory.GetMessageClass(found.input_type if direction == "sent" else found.output_type)


class Recorder:
    """Appends lines to this process's file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}.jsonl"

    def write(self, facts: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def message(self, method: str, direction: str, data: bytes) -> None:
        """Note a message as it travels: by its method's type, whatever wrote or read it in this program."""
        # Read by protobuf: what passes is what anybody could read.
        name = type_of(method, direction).FromString(data).DESCRIPTOR.full_name
        body = base64.b64encode(data).decode()
        self.write({"method": method, "direction": direction, "type": name, "body": body})


def recording_call(made: Callable[..., object], recorder: Recorder) -> Callable[..., object]:
    """A channel's method that makes calls, with serialisers that tell the recorder what passes."""

    def make(
        method: str,
        request_serializer: Callable[[Passed], bytes],
        response_deserializer: Callable[[bytes], Passed],
        **rest: object,
    ) -> object:
        def serialise(message: Passed) -> bytes:
            data = request_serializer(message)
            recorder.message(method, "sent", data)
            return data

        def deserialise(data: bytes) -> Passed:
            message = response_deserializer(data)
            recorder.message(method, "received", data)
            return message

        return made(method, request_serializer=serialise, response_deserializer=deserialise, **rest)

    return make


def recording_opener(open_channel: Callable[..., object], recorder: Recorder) -> Callable[..., object]:
    """``secure_channel`` whose channels record."""

    def open_recorded(*words: object, **named: object) -> object:
        channel = open_channel(*words, **named)
        for kind in CALL_KINDS:
            setattr(channel, kind, recording_call(getattr(channel, kind), recorder))
        return channel

    return open_recorded


def figures_of(result: JobResult, payload: Path) -> dict[str, float]:
    """Everything that this job knows of this site alone: counts, losses, and the norm of each vector."""
    figures: dict[str, float] = {"records": result.records, "held_out_records": result.held_out_records}
    figures |= result.metrics
    for name, values in tensors_from_bytes(payload.read_bytes()).items():
        if values.shape == (1,):
            figures[name] = float(values[0])
        else:
            figures[f"{name}_norm"] = float((values.astype("float64") ** 2).sum() ** 0.5)
    return figures


def install(recorder: Recorder) -> None:
    """Put the recorder between the program and its channels, and between it and its trainer."""
    grpc.secure_channel = recording_opener(grpc.secure_channel, recorder)
    grpc.aio.secure_channel = recording_opener(grpc.aio.secure_channel, recorder)

    def recording_read_result(job_dir: Path) -> JobResult | JobFailure | None:
        result = read_result(job_dir)
        if isinstance(result, JobResult):
            recorder.write({"job": job_dir.name, "figures": figures_of(result, job_dir / PAYLOAD_FILE)})
        return result

    process_runner.read_result = recording_read_result


if __name__ == "__main__":
    install(Recorder(Path(os.environ["WIRE_RECORD_DIR"])))
    sys.exit(main())
