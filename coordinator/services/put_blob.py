"""Store a blob that a person uploads: the layout and the initial state of a run's adapter."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

from coordinator.blobs.store import UNRESUMED, PartialWriter, StoredBlob
from coordinator.errors import BlobDigestMismatchError, BlobError
from coordinator.services.collect_blobs import begin_grace_anew
from coordinator.services.refusals import RequestInvalidError
from coordinator.services.resources import Resources


async def put_blob(resources: Resources, *, sha256: str, parts: AsyncIterator[bytes]) -> StoredBlob:
    """Store the bytes under their digest, spooled to the store while they arrive.

    Nothing is recorded in the audit log: a blob means nothing before a run names it.

    Raises:
        BlobDigestMismatchError: the bytes have another digest; nothing is kept.
        RequestInvalidError: there are more bytes than a blob may have.
        BlobStoreFullError, BlobStoreUnavailableError: the store has no room, or does not answer.
    """
    name = f"{UNRESUMED}{secrets.token_hex(16)}"
    digest = hashlib.sha256()
    writer = await asyncio.to_thread(resources.blobs.open_partial, name)

    def take(part: bytes) -> int:
        digest.update(part)
        return writer.append(part)

    try:
        async for part in parts:
            if writer.held + len(part) > resources.max_blob_bytes:
                raise RequestInvalidError("the blob is larger than is accepted here", limit=resources.max_blob_bytes)
            if part:
                await asyncio.to_thread(take, part)
        if writer.held == 0:
            raise RequestInvalidError("the body is empty")
        if digest.hexdigest() != sha256:
            raise BlobDigestMismatchError(
                "the body does not have the digest in the path", expected=sha256, found=digest.hexdigest()
            )
        stored = await asyncio.to_thread(writer.finish, sha256=sha256)
    finally:
        await asyncio.to_thread(_drop, resources, name, writer)
    # It may have been here before, and about to be collected because nothing names it.
    await resources.db.run_tx_async("begin-grace-anew", lambda session: begin_grace_anew(session, sha256))
    return stored


def _drop(resources: Resources, name: str, writer: PartialWriter) -> None:
    # What was not finished is of no use: nobody resumes the upload of a file from a person's desk.
    with suppress(BlobError):
        writer.close()
    resources.blobs.discard_partial(name)
