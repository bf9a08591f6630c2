"""Two yardsticks beside the real gateway, in the same process and under the same TLS: bare gRPC streams.

One looks at no byte. The other hashes and keeps what it takes, in the plainest way: what an end has to do that believes
no byte and loses none.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

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
