"""The fuzzed coordinator's process, as the tests see it: where it listens, what it uses, what it logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("fuzzed_coordinator.py")
MAX_GROWTH_BYTES = 48 << 20


@dataclass
class Coordinator:
    """The process, and where it listens."""

    process: subprocess.Popen[str]
    log: Path
    said: dict[str, Any]

    def rss_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def channel(self, site: str) -> grpc.aio.Channel:
        identity = self.said["sites"][site]
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.said["root"].encode(),
            private_key=identity["key"].encode(),
            certificate_chain=identity["certificate"].encode(),
        )
        options = (("grpc.ssl_target_name_override", self.said["server_name"]),)
        return grpc.aio.secure_channel(self.said["gateway"], credentials, options=options)

    def enrolment_channel(self) -> grpc.aio.Channel:
        certificate = self.said["enrolment_certificate"].encode()
        options = (("grpc.ssl_target_name_override", "enrolment.wardround.internal"),)
        credentials = grpc.ssl_channel_credentials(root_certificates=certificate)
        return grpc.aio.secure_channel(self.said["enrolment"], credentials, options=options)


@contextmanager
def running(folder: Path, snapshot: str) -> Iterator[Coordinator]:
    folder.mkdir()
    log = folder / "coordinator.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), snapshot],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()[-4000:]
            yield Coordinator(process=process, log=log, said=json.loads(line))
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()
                process.stdout.close()


def unexpected(log: str) -> list[str]:
    return [line[:2000] for line in log.splitlines() if "unexpectedly" in line or "Traceback" in line][:5]
