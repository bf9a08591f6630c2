"""Store a blob that a person uploads: the layout and the initial state of a run's adapter."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator

from coordinator.blobs.store import UNRESUMED, StoredBlob
from coordinator.errors import BlobDigestMismatchError
from coordinator.services.collect_blobs import begin_grace_anew
from coordinator.services.refusals import RequestInvalidError
from coordinator.services.resources import Resources


async def put_blob(resources: Resources, *, sha256: str, parts: AsyncIterator[bytes]) -> StoredBlob:
    """Store the bytes under their digest, spooled to the store while they arrive.

    Nothing is recorded in the audit log: a blob means nothing before a run names it.

    Raises:
        BlobDigestMismatchError: the bytes have another digest; nothing is kept.
        RequestInvalidError: there are more bytes than a blob may have.
        BlobStoreFullError: there is no room.
    """
    name = f"{UNRESUMED}{secrets.token_hex(16)}"
    digest = hashlib.sha256()
    n_bytes = 0
    try:
        async for part in parts:
            if not part:
                continue
            if n_bytes + len(part) > resources.max_blob_bytes:
                raise RequestInvalidError("the blob is larger than is accepted here", limit=resources.max_blob_bytes)
            digest.update(part)
            await asyncio.to_thread(resources.blobs.append_partial, name, offset=n_bytes, data=part)
            n_bytes += len(part)
        if n_bytes == 0:
            raise RequestInvalidError("the body is empty")
        if digest.hexdigest() != sha256:
            raise BlobDigestMismatchError(
                "the body does not have the digest in the path", expected=sha256, found=digest.hexdigest()
            )
        stored = await asyncio.to_thread(resources.blobs.finish_partial, name, sha256=sha256)
    finally:
        await asyncio.to_thread(resources.blobs.discard_partial, name)
    # It may have been here before, and about to be collected because nothing names it.
    await resources.db.run_tx_async("begin-grace-anew", lambda session: begin_grace_anew(session, sha256))
    return stored
