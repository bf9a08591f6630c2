"""How fast a masked input goes up and a public state comes down, what slow sites cost, and what a broken line costs.

Everything is the real thing over mutual TLS on loopback: the site's link code, the gateway with its admission, the
services, the database and the folder store, with the server in a process of its own (``transport_rig``). The yardstick
is a bare gRPC stream of the same chunk size under the same TLS, in the same server process and the same run. A second
one does what must be done and no more: the sender reads a file, the receiver hashes and keeps. They alternate, and the
best of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import structlog

from benchmarks.rows import Row, announce, print_rows
from benchmarks.transport_rig import RUN_ID
from benchmarks.transport_yardsticks import MIB, bare_download, bare_upload, kept_download, kept_upload
from coordinator.ca.authority import GATEWAY_SERVER_NAME
from fl_protocol.free_memory import keep_room_for_chunks
from fl_protocol.ids import SiteId
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.wire.convert import proto_from_exchange
from fl_protocol.wire.v1 import round_pb2
from site_agent.link.backoff import Backoff
from site_agent.link.channel import TlsIdentity, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.downloader import Downloader
from site_agent.link.uploader import Upload, Uploader

SMALLEST_RATIO = 0.7
N_SLOW = 20
_BARE = "bare gRPC stream, same TLS and chunk"
_KEPT = "the same stream, hashed once and kept on the disk"
_SLOW_CHUNKS = 12
_SLOW_PAUSE_S = 0.5
_BUFFERED_MB = 33
"""What a slow stream of gRPC's own was measured to keep in the server (17 to 33 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A server that runs."""

    folder: Path
    process: subprocess.Popen[str]
    n_bytes: int
    initial_sha256: str
    gateway: int
    bare: int

    def identity(self, site: str) -> TlsIdentity:
        """What a site shows."""
        home = self.folder / "sites" / site
        return TlsIdentity(
            root_pem=(home / "root.pem").read_bytes(),
            certificate_pem=(home / "certificate.pem").read_bytes(),
            private_key_pem=(home / "key.pem").read_bytes(),
            server_name=GATEWAY_SERVER_NAME,
        )

    def upload(self, site: str) -> Upload:
        """What a site has to send."""
        home = self.folder / "sites" / site
        return Upload(
            context=ExchangeContext.decode((home / "context").read_bytes()),
            site_id=SiteId(site),
            header=(home / "m5").read_bytes(),
            path=home / "masked.bin",
            n_bytes=self.n_bytes,
        )

    def resident_bytes(self, field: str) -> int:
        """VmRSS or VmHWM of the server."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("this system does not tell a program's memory")

    def cpu_s(self) -> float:
        """Processor time of the server's threads and of this process, so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        nanoseconds = sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks)
        return nanoseconds / 1e9 + time.process_time()

    def forget_peak(self) -> None:
        """Let the peak be counted from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def running_rig(folder: Path, *arguments: str) -> Iterator[Rig]:
    """The server, from its first line until it is ended."""
    command = [sys.executable, "-m", "benchmarks.transport_rig", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {process.wait()}")
        yield Rig(folder=folder, process=process, **json.loads(line))
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@asynccontextmanager
async def site_client(rig: Rig, site: str, *, port: int = 0) -> AsyncIterator[CoordinatorClient]:
    """A site's link."""
    channel = open_channel(f"127.0.0.1:{port or rig.gateway}", rig.identity(site))
    yield CoordinatorClient(channel, agent_version="benchmark")
    await channel.close()


def uploader_of(rig: Rig, client: CoordinatorClient, site: str) -> Uploader:
    """As the agent makes it."""
    spki = (rig.folder / "sites" / site / "coordinator.spki").read_bytes()
    return Uploader(client, coordinator_spki=spki, backoff=Backoff(random.random))


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds by the clock on the wall."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


@dataclass(slots=True)
class BareCost:
    """What the bare stream takes at its best: seconds, and processor seconds of both ends."""

    seconds: float = math.inf
    cpu_s: float = math.inf

    async def measure(self, rig: Rig, work: Callable[[], Awaitable[object]]) -> None:
        """One trial."""
        before = rig.cpu_s()
        self.seconds = min(self.seconds, await timed(work))
        self.cpu_s = min(self.cpu_s, rig.cpu_s() - before)


def unavoidable_cpu_s(data: Path, n_bytes: int, folder: Path) -> float:
    """Processor time of what a transfer cannot do without: its file read once, hashed once and written once."""
    kept, best = folder / "unavoidable.bin", math.inf
    for _ in range(3):
        began, digest = time.process_time(), hashlib.sha256()
        with data.open("rb") as source, kept.open("wb") as target:
            for _ in range(0, n_bytes, MIB):
                part = source.read(MIB)
                digest.update(part)
                target.write(part)
        best = min(best, time.process_time() - began)
        kept.unlink()
    return best


def ceiling_row(direction: str, bare: BareCost, unavoidable_s: float) -> Row:
    """What nobody can pass on this machine: the bare stream and the unavoidable, all cores busy without a pause."""
    cores = os.cpu_count() or 1
    least_s = max(bare.seconds, (bare.cpu_s + unavoidable_s) / cores)
    return Row(
        name=f"{direction}: the most of the bare stream that {cores} cores could show",
        value=bare.seconds / least_s,
        unit="x",
        yardstick_name=f"{bare.cpu_s * 1e3:.0f} CPU-ms of the bare stream, {unavoidable_s * 1e3:.0f} unavoidable",
    )


async def throughput_rows(rig: Rig, sites: list[str]) -> list[Row]:
    """Upload and download beside their yardsticks, alternating; each site uploads once."""
    up: list[float] = []
    down: list[float] = []
    bare_up, bare_down = BareCost(), BareCost()
    kept_up: list[float] = []
    kept_down: list[float] = []
    size_mb = rig.n_bytes / 1e6
    for site in sites:
        announce(f"{site}: {size_mb:.0f} MB up and down, and the bare streams")
        channel = open_channel(f"127.0.0.1:{rig.bare}", rig.identity(site))
        await bare_upload(channel, MIB)
        async with site_client(rig, site) as client:
            await client.query_upload(rig.upload(site).context)
            uploader = uploader_of(rig, client, site)
            downloads = rig.folder / "downloads" / site
            downloader = Downloader(client, backoff=Backoff(random.random), folder=downloads)
            await bare_up.measure(rig, partial(bare_upload, channel, rig.n_bytes))
            up.append(await timed(partial(uploader.upload, rig.upload(site))))
            kept_up.append(await timed(partial(kept_upload, channel, rig.upload(site).path)))
            await bare_down.measure(rig, partial(bare_download, channel, rig.n_bytes))
            down.append(
                await timed(partial(downloader.download, RUN_ID, rig.initial_sha256, max_bytes=rig.n_bytes + MIB))
            )
            kept = rig.folder / "kept-here.bin"
            kept_down.append(await timed(partial(kept_download, channel, rig.n_bytes, kept)))
        await channel.close()
    unavoidable_s = unavoidable_cpu_s(rig.upload(sites[0]).path, rig.n_bytes, rig.folder)
    upload = f"upload of {size_mb:.0f} MB until its receipt"
    download = f"download of {size_mb:.0f} MB, verified, on the disk"
    return [
        _ratio_row(upload, size_mb, min(up), bare_up.seconds, yardstick=_BARE, aim=SMALLEST_RATIO),
        ceiling_row("upload", bare_up, unavoidable_s),
        _ratio_row(upload, size_mb, min(up), min(kept_up), yardstick=_KEPT),
        _ratio_row(download, size_mb, min(down), bare_down.seconds, yardstick=_BARE, aim=SMALLEST_RATIO),
        ceiling_row("download", bare_down, unavoidable_s),
        _ratio_row(download, size_mb, min(down), min(kept_down), yardstick=_KEPT),
    ]


def _ratio_row(
    name: str, size_mb: float, seconds: float, bare_seconds: float, *, yardstick: str, aim: float | None = None
) -> Row:
    ratio = bare_seconds / seconds
    return Row(
        name=name,
        value=size_mb / seconds / 1e3,
        unit="GB/s",
        yardstick=size_mb / bare_seconds / 1e3,
        yardstick_name=yardstick if aim is None else f"{yardstick} (aim: ratio >= {aim})",
        ratio=ratio,
        within=None if aim is None else ratio >= aim,
    )


async def slow_rows(rig: Rig, sites: list[str]) -> list[Row]:
    """The server's memory while every site sends a chunk now and then, all at once."""
    announce(f"{len(sites)} slow streams at once")
    before = rig.resident_bytes("VmRSS")
    rig.forget_peak()

    async def trickle(site: str) -> None:
        upload = rig.upload(site)

        async def parts() -> AsyncIterator[round_pb2.UploadBlobRequest]:
            exchange = proto_from_exchange(upload.context)
            yield round_pb2.UploadBlobRequest(
                header=round_pb2.UploadHeader(exchange=exchange, masked_input=upload.header, offset=0)
            )
            with upload.path.open("rb") as file:
                for number in range(_SLOW_CHUNKS):
                    chunk = round_pb2.BlobChunk(offset=number * MIB, data=file.read(MIB))
                    yield round_pb2.UploadBlobRequest(chunk=chunk)
                    await asyncio.sleep(_SLOW_PAUSE_S * (0.5 + random.random()))

        async with site_client(rig, site) as client:
            try:
                await client.rounds.UploadBlob(parts(), timeout=120)
            except grpc.aio.AioRpcError as error:
                # The stream ends before the vector does, and says so: it was the slowness that was wanted.
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise

    await asyncio.gather(*(trickle(site) for site in sites))
    grown_mb = (rig.resident_bytes("VmHWM") - before) / 1e6
    limit_mb = _BUFFERED_MB * len(sites)
    return [
        Row(
            name=f"server: memory for {len(sites)} slow streams at once",
            value=grown_mb,
            unit="MB",
            yardstick=limit_mb,
            yardstick_name=f"{_BUFFERED_MB} MB a stream, gRPC's own buffers",
            ratio=limit_mb / grown_mb,
            within=grown_mb <= limit_mb,
        )
    ]


class CuttingRelay:
    """A TCP relay in this process that resets its first connection once so many bytes went up on it."""

    def __init__(self, port: int, *, cut_after_bytes: int | None) -> None:
        """Forward to ``port``."""
        self._target = port
        self._cut_after = cut_after_bytes
        self.bytes_up = 0
        self.port = 0
        self._carrying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingRelay]:
        """Listen as long as the block runs."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MIB)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=MIB)

        async def up() -> None:
            while data := await reader.read(MIB // 4):
                self.bytes_up += len(data)
                if self._cut_after is not None and self.bytes_up >= self._cut_after:
                    self._cut_after = None
                    writer.transport.abort()
                    back.transport.abort()
                    return
                back.write(data)
                await back.drain()

        async def down() -> None:
            while data := await there.read(MIB // 4):
                writer.write(data)
                await writer.drain()

        try:
            await asyncio.gather(up(), down())
        except ConnectionError:
            pass
        finally:
            writer.close()
            back.close()


async def break_rows(rig: Rig, sites: tuple[str, str]) -> list[Row]:
    """An upload through a relay that cuts the line at half, beside one through a relay that does not."""
    announce("a line that breaks at 50 %")
    seconds, bytes_up = [], []
    for site, cut_after in zip(sites, (None, rig.n_bytes // 2), strict=True):
        async with (
            CuttingRelay(rig.gateway, cut_after_bytes=cut_after).running() as relay,
            site_client(rig, site, port=relay.port) as client,
        ):
            await client.query_upload(rig.upload(site).context)
            uploader = uploader_of(rig, client, site)
            seconds.append(await timed(partial(uploader.upload, rig.upload(site))))
            bytes_up.append(relay.bytes_up)
    return [
        Row(name="a break at 50 %: seconds lost", value=seconds[1] - seconds[0], unit="s"),
        Row(
            name="a break at 50 %: bytes sent again",
            value=(bytes_up[1] - bytes_up[0]) / 1e6,
            unit="MB",
            yardstick=rig.n_bytes / 2e6,
            yardstick_name="starting again would send",
        ),
    ]


async def measure(folder: Path, *, quick: bool) -> list[Row]:
    """All rows."""
    n_parameters = 2_500_000 if quick else 25_000_000
    n_trials = 1 if quick else 4
    rows: list[Row] = []
    sites = [f"site-{number:02}" for number in range(n_trials + 2)]
    with running_rig(folder / "large", "--sites", str(len(sites)), "--parameters", str(n_parameters)) as rig:
        rows += await throughput_rows(rig, sites[:n_trials])
        rows += await break_rows(rig, (sites[-2], sites[-1]))
    shutil.rmtree(folder / "large")
    slow = [f"site-{number:02}" for number in range(N_SLOW)]
    arguments = ("--sites", str(N_SLOW), "--parameters", "4200000", "--max-uploads", str(N_SLOW))
    with running_rig(folder / "slow", *arguments) as rig:
        rows += await slow_rows(rig, slow)
    return rows


def main(arguments: list[str]) -> int:
    """Measure and print; exit 1 when a stated aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks transport", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--quick", action="store_true", help="2.5M parameters, one trial: to see that it runs")
    options = parser.parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    keep_room_for_chunks(os.environ)
    # What the site's link code says goes where it does not meet the document.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory(prefix="wardround-transport-") as folder:
        rows = asyncio.run(measure(Path(folder), quick=options.quick))
    print_rows(rows, as_json=options.json)
    return 0 if all(row.within is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
