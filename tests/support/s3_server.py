"""A real S3 server (seaweedfs) on loopback, for as long as a test needs it: a bucket, and keys that sign requests."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.tools import tool

_STARTS_IN_S = 60.0
_ENDS_IN_S = 2.0
_GRPC_OFFSET = 10_000
"""Each of the server's ports has a second one, this much higher."""


@dataclass(slots=True)
class S3Server:
    """A server that runs."""

    folder: Path
    endpoint_url: str
    bucket: str
    credentials_file: Path
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers a signed request."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + _STARTS_IN_S
        client = self.client()
        while True:
            try:
                client.create_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}:
                    break
                self._check_time(deadline)
            except BotoCoreError:
                self._check_time(deadline)
            else:
                break
            time.sleep(0.2)
        client.close()

    def stop(self) -> None:
        """End it, by its process id."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_ENDS_IN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def client(self):  # noqa: ANN201 # boto3 makes its classes at run time
        """A client with the server's own keys, to look at what is stored."""
        key, secret = [line.partition(" = ")[2] for line in self.credentials_file.read_text().splitlines()[1:]]
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=10),
        )

    def _check_time(self, deadline: float) -> None:
        if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
            log = (self.folder / "server.log").read_text(errors="replace")
            self.stop()
            raise RuntimeError(f"the S3 server does not answer; its log ends:\n{log[-2000:]}")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """An S3 server whose data lie in ``folder``."""
    weed = tool("weed")
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    credentials = folder / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    credentials.chmod(0o600)
    master, volume, filer, s3 = _free_ports(4)
    server = S3Server(
        folder=folder,
        endpoint_url=f"http://127.0.0.1:{s3}",
        bucket="wardround",
        credentials_file=credentials,
        command=(
            *(str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"),
            *(f"-master.port={master}", f"-volume.port={volume}", "-master.volumeSizeLimitMB=256", "-volume.max=0"),
            *(
                "-filer",
                f"-filer.port={filer}",
                "-s3",
                f"-s3.port={s3}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                f"-s3.config={folder / 's3.json'}",
            ),
        ),
    )
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _free_ports(n_ports: int) -> list[int]:
    """Ports that are free now, each with the one that the server adds to it."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < n_ports:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            # The system draws from above 32768, mostly too high for the second port.
            port = 11_000 + first.getsockname()[1] % 11_000
            if port in found:
                continue
            try:
                for wanted in (port, port + _GRPC_OFFSET):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", wanted))
            except OSError:
                continue
            found.append(port)
    return found
