"""Two yardsticks beside the real gateway, in the same process and under the same TLS: bare gRPC streams.

One looks at no byte. The other hashes and keeps what it takes, in the plainest way: what an end has to do that believes
no byte and loses none.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, cast

import grpc

from coordinator.ca.authority import CertificateAuthority, ServerIdentity
from coordinator.gateway.server import MAX_MESSAGE_BYTES

BARE_SERVICE = "bare.Stream"
MIB = 1 << 20


async def open_yardsticks(
    authority: CertificateAuthority, identity: ServerIdentity, *, folder: Path
) -> tuple[grpc.aio.Server, int]:
    """Serve both; the server, which is started, and its port.

    Args:
        authority: whose sites may call.
        identity: of the server.
        folder: where the bytes go that are kept.
    """
    chunk = bytes(MIB)

    async def upload(requests: AsyncIterator[bytes], context: object) -> bytes:
        del context
        n_bytes = 0
        async for data in requests:
            n_bytes += len(data)
        return str(n_bytes).encode()

    async def keep(requests: AsyncIterator[bytes], context: object) -> bytes:
        del context
        return (await keep_stream(requests, folder / "kept.bin")).encode()

    async def download(request: bytes, context: object) -> AsyncIterator[bytes]:
        del context
        for start in range(0, int(request), MIB):
            yield chunk[: min(MIB, int(request) - start)]

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Keep": grpc.stream_unary_rpc_method_handler(keep),
        "Download": grpc.unary_stream_rpc_method_handler(download),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(BARE_SERVICE, handlers),))
    credentials = grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)], root_certificates=authority.root_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, port


async def keep_stream(parts: AsyncIterator[bytes], path: Path) -> str:
    """Hash each part, write it, and wait until all are on the disk; returns the SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for data in parts:
            await asyncio.to_thread(_keep_part, digest, file, data)
        await asyncio.to_thread(os.fsync, file.fileno())
    return digest.hexdigest()


def _keep_part(digest: hashlib._Hash, file: BinaryIO, data: bytes) -> None:
    digest.update(data)
    file.write(data)
    file.flush()


async def bare_upload(channel: grpc.aio.Channel, n_bytes: int) -> None:
    """The yardstick of an upload."""
    chunk = bytes(MIB)

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, n_bytes, MIB):
            yield chunk[: min(MIB, n_bytes - start)]

    send = cast("Callable[[AsyncIterator[bytes]], Awaitable[bytes]]", channel.stream_unary(f"/{BARE_SERVICE}/Upload"))
    received = await send(parts())
    if int(received) != n_bytes:
        raise RuntimeError(f"the bare stream lost bytes: {received!r}")


async def kept_upload(channel: grpc.aio.Channel, path: Path) -> None:
    """The second yardstick of an upload: the file is read, hashed at the other end and on its disk."""

    async def parts() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, MIB):
                yield data

    send = cast("Callable[[AsyncIterator[bytes]], Awaitable[bytes]]", channel.stream_unary(f"/{BARE_SERVICE}/Keep"))
    if len(await send(parts())) != 64:
        raise RuntimeError("the stream that keeps named no digest")


async def kept_download(channel: grpc.aio.Channel, n_bytes: int, path: Path) -> None:
    """The second yardstick of a download: hashed and on this end's disk."""
    ask = cast("Callable[[bytes], AsyncIterator[bytes]]", channel.unary_stream(f"/{BARE_SERVICE}/Download"))
    await keep_stream(ask(str(n_bytes).encode()), path)
    if (await asyncio.to_thread(path.stat)).st_size != n_bytes:
        raise RuntimeError("the stream that keeps lost bytes")


async def bare_download(channel: grpc.aio.Channel, n_bytes: int) -> None:
    """The yardstick of a download."""
    n_received = 0
    ask = cast("Callable[[bytes], AsyncIterator[bytes]]", channel.unary_stream(f"/{BARE_SERVICE}/Download"))
    async for data in ask(str(n_bytes).encode()):
        n_received += len(data)
    if n_received != n_bytes:
        raise RuntimeError("the bare stream lost bytes")
