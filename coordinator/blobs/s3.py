"""Blobs in a bucket of S3-compatible storage, for coordinators of many replicas.

    <prefix>blobs/<sha256>                                     a blob: one plain object
    <prefix>partials/<name>/<lineage>/<offset>-<size>-<token>  some consecutive bytes of a partial
    <prefix>owners/<name>                                      who writes the partial at the moment, and its lineage

A partial is kept as objects of 8 MiB, the last one before a break smaller, and composed on the server by a multipart
copy: S3 takes no part below 5 MiB but the last, and cannot append. Objects of one chunk would lose less to a gateway
that is killed (one chunk instead of up to eight are sent again), but could only become a blob by reading all of them
back and writing them again (docs/decisions/0017).

S3 has no locks. Each writer knows its own objects and those it found; where two wrote the same place, the chain of one
of them is composed, and what it must be is checked by the caller's digests, which were taken over just these bytes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

from coordinator.blobs.s3_errors import typed_s3_errors
from coordinator.blobs.s3_partial import PART_BYTES, Bucket, PartialPart, S3Partial, discard, parts_of
from coordinator.blobs.store import CHUNK_BYTES, UNRESUMED, Chunk, StoredBlob
from coordinator.errors import (
    BlobDigestMismatchError,
    BlobNotFoundError,
    BlobOffsetError,
    BlobStoreUnavailableError,
)

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,180}")
_PUT = "put-"
"""How the names of this store's own partials begin, those of ``put``."""
_MAX_READ_TRIES = 4
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
_MAX_CONNECTIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """How the server is reached. Keys come from a file or from the environment's standard chain, never from here.

    Attributes:
        endpoint_url: of a server that is not Amazon's; None for theirs.
        region: what requests are signed for.
        ca_file: the certificates that sign the server's, where the system does not know them.
        credentials_file: in the form of ~/.aws/credentials; None for the standard chain.
        profile: of the credentials file.
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    ca_file: Path | None = None
    credentials_file: Path | None = None
    profile: str | None = None


def open_s3_client(options: S3Options) -> S3Client:
    """A client that may be used by many threads. It does not connect yet.

    Raises:
        BlobStoreUnavailableError: the credentials' file, the profile or the CA file cannot be used.
    """
    with typed_s3_errors("open"):
        session = boto3.Session(profile_name=options.profile)
        if options.credentials_file is not None:
            session = _session_with_file(options)
        return session.client(
            "s3",
            endpoint_url=options.endpoint_url,
            region_name=options.region,
            verify=None if options.ca_file is None else str(options.ca_file),
            config=Config(
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                max_pool_connections=_MAX_CONNECTIONS,
                retries={"mode": "standard", "total_max_attempts": 3},
                # Servers that are not Amazon's do not all know the newer checksums; the signature covers the bytes.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"payload_signing_enabled": True, "addressing_style": "path" if options.endpoint_url else "auto"},
            ),
        )


def _session_with_file(options: S3Options) -> boto3.Session:
    from botocore.session import Session

    core = Session(profile=options.profile)
    core.set_config_variable("credentials_file", str(options.credentials_file))
    return boto3.Session(botocore_session=core)


class S3BlobStore:
    """A BlobStore in a bucket."""

    def __init__(self, client: S3Client, *, bucket: str, prefix: str = "") -> None:
        """Take the client and where in it the blobs are."""
        self._bucket = Bucket(s3=client, name=bucket, prefix=prefix)

    def put(self, chunks: Iterable[Chunk], *, expected_sha256: str | None = None) -> StoredBlob:
        """Store the concatenation of ``chunks``; see BlobStore."""
        digest = hashlib.sha256()
        name = f"{_PUT}{secrets.token_hex(16)}"
        small, writer = bytearray(), None
        try:
            for chunk in chunks:
                digest.update(chunk)
                small += chunk
                if len(small) > PART_BYTES:
                    # Too large for one request: through a partial, of which a crash leaves nothing under a digest.
                    writer = writer or S3Partial(self._bucket, name)
                    writer.append(small)
                    small = bytearray()
            sha256 = digest.hexdigest()
            if expected_sha256 is not None and sha256 != expected_sha256:
                raise BlobDigestMismatchError(
                    "the bytes do not have the announced digest", expected=expected_sha256[:64], found=sha256
                )
            if writer is None:
                self._bucket.put(self._key(sha256), small)
                return StoredBlob(sha256=sha256, n_bytes=len(small))
            writer.append(small)
            return writer.finish(sha256=sha256)
        finally:
            if writer is not None:
                discard(self._bucket, name)

    def put_bytes(self, data: Chunk, *, expected_sha256: str | None = None) -> StoredBlob:
        """``put`` of one piece."""
        return self.put([data], expected_sha256=expected_sha256)

    def has(self, sha256: str) -> bool:
        """Whether the blob is here."""
        try:
            self.size(sha256)
        except BlobNotFoundError:
            return False
        return True

    def size(self, sha256: str) -> int:
        """Its length in bytes."""
        key = self._key(sha256)
        with typed_s3_errors("HeadObject", sha256=sha256):
            return int(self._bucket.s3.head_object(Bucket=self._bucket.name, Key=key)["ContentLength"])

    def read(self, sha256: str) -> bytes:
        """All of it."""
        return b"".join(self.iter_chunks(sha256))

    def iter_chunks(self, sha256: str, *, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Its bytes from ``offset`` on, in pieces."""
        size = self.size(sha256)
        if not 0 <= offset <= size:
            raise BlobOffsetError("the offset is not inside the blob", sha256=sha256, offset=offset)
        return self._pieces(self._key(sha256), offset=offset, size=size, chunk_bytes=chunk_bytes)

    def iter_views(self, sha256: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
        """Its bytes in pieces."""
        return map(memoryview, self.iter_chunks(sha256, chunk_bytes=chunk_bytes))

    def delete(self, sha256: str) -> None:
        """Forget a blob."""
        self._bucket.delete([self._key(sha256)])

    def iter_digests(self) -> Iterator[str]:
        """The digests held, a page of the listing at a time."""
        start = self._bucket.blob_key("")
        for key in self._bucket.list(start):
            name = key.removeprefix(start)
            if _DIGEST.fullmatch(name) is not None:
                yield name

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Forget what a crash left; see BlobStore. Goes by the server's own clock."""
        bucket = self._bucket
        marker = f"{bucket.prefix}now-{secrets.token_hex(8)}"
        bucket.put(marker, b"")
        newest = bucket.stored_at(marker) - timedelta(seconds=older_than_s)
        bucket.delete([marker])
        names = {
            key.removeprefix(bucket.owner_key("")): at
            for key, at in bucket.list_with_time(bucket.owner_key(""))
            if key.removeprefix(bucket.owner_key("")).startswith((UNRESUMED, _PUT))
        }
        old = [name for name, at in names.items() if at <= newest]
        for name in old:
            discard(bucket, name)
        return len(old) + bucket.abort_uploads(bucket.blob_key(""), newest=newest)

    def free_bytes(self) -> int | None:
        """Not known: a bucket does not tell."""
        return None

    def open_partial(self, name: str) -> S3Partial:
        """Continue a partial; see BlobStore."""
        return S3Partial(self._bucket, _checked(name))

    def partial_size(self, name: str) -> int:
        """How many bytes of this partial are held."""
        return sum(part.size for part in self._parts(name))

    def iter_partial(self, name: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes held so far, in pieces."""
        rest = bytearray()
        for part in self._parts(name):
            for piece in self._pieces(part.key, offset=0, size=part.size, chunk_bytes=chunk_bytes):
                rest += piece
                while len(rest) >= chunk_bytes:
                    yield bytes(rest[:chunk_bytes])
                    del rest[:chunk_bytes]
        if rest:
            yield bytes(rest)

    def discard_partial(self, name: str) -> None:
        """Forget a partial; see BlobStore."""
        discard(self._bucket, _checked(name))

    def _parts(self, name: str) -> list[PartialPart]:
        return parts_of(self._bucket, _checked(name))

    def _key(self, sha256: str) -> str:
        # Safety: a name that is no digest never becomes a key.
        if _DIGEST.fullmatch(sha256) is None:
            raise BlobNotFoundError("a blob is named by 64 hexadecimal characters", sha256=sha256[:80])
        return self._bucket.blob_key(sha256)

    def _pieces(self, key: str, *, offset: int, size: int, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes of an object; a connection that breaks in the middle is made again where it broke."""
        position, failures = offset, 0
        while position < size:
            began = position
            try:
                for piece in self._read_once(key, position=position, size=size, chunk_bytes=chunk_bytes):
                    yield piece
                    position += len(piece)
            except BlobStoreUnavailableError:
                failures = 0 if position > began else failures + 1
                if failures >= _MAX_READ_TRIES:
                    raise

    def _read_once(self, key: str, *, position: int, size: int, chunk_bytes: int) -> Iterator[bytes]:
        with typed_s3_errors("GetObject", sha256=key.rpartition("/")[2]):
            body = self._bucket.s3.get_object(Bucket=self._bucket.name, Key=key, Range=f"bytes={position}-")["Body"]
        try:
            while position < size:
                with typed_s3_errors("GetObject"):
                    piece = body.read(chunk_bytes)
                if not piece:
                    raise BlobStoreUnavailableError("an object is shorter than it was", key=key, size=size)
                position += len(piece)
                yield piece
        finally:
            body.close()


def _checked(name: str) -> str:
    # Safety: a name with a slash would be somebody else's key.
    if _PARTIAL_NAME.fullmatch(name) is None:
        raise BlobNotFoundError("a partial's name is lower-case letters, digits, dots and hyphens", name=name[:80])
    return name
