"""A partial in a bucket: its objects, the writer that adds to them, and how they become one blob. See ``s3``."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from coordinator.blobs.s3_errors import typed_s3_errors
from coordinator.blobs.store import Chunk, StoredBlob
from coordinator.errors import BlobNotFoundError, BlobOffsetError, PartialTakenOverError

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef, ObjectIdentifierTypeDef

PART_BYTES = 8 << 20
"""How much of an upload is in memory before it becomes an object; what a killed gateway may have to be sent again."""
_MIN_COPIED_BYTES = 5 << 20
"""S3 takes no smaller part in a multipart upload, but for the last."""
_MAX_DELETED = 1000
_PART_NAME = re.compile(r"(\d{15})-(\d+)-[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where the objects are."""

    s3: S3Client
    name: str
    prefix: str

    def parts_prefix(self, partial: str, lineage: str = "") -> str:
        """Before the keys of a partial's objects."""
        return f"{self.prefix}partials/{partial}/" + (f"{lineage}/" if lineage else "")

    def owner_key(self, partial: str) -> str:
        """The object that says who writes."""
        return f"{self.prefix}owners/{partial}"

    def blob_key(self, sha256: str) -> str:
        """A blob's object."""
        return f"{self.prefix}blobs/{sha256}"

    def source(self, key: str) -> CopySourceTypeDef:
        """An object as the source of a copy."""
        return {"Bucket": self.name, "Key": key}

    def put(self, key: str, data: Chunk) -> None:
        """Write one object. Raises BlobStoreFullError, BlobStoreUnavailableError."""
        with typed_s3_errors("PutObject"):
            self.s3.put_object(Bucket=self.name, Key=key, Body=bytes(data))

    def get(self, key: str) -> bytes:
        """Read one object. Raises BlobNotFoundError, BlobStoreUnavailableError."""
        with typed_s3_errors("GetObject"):
            return self.s3.get_object(Bucket=self.name, Key=key)["Body"].read()

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin so, in order."""
        yield from (key for key, _ in self.list_with_time(prefix))

    def list_with_time(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """The keys that begin so, in order, and when each was written."""
        pages = iter(self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix))
        while True:
            with typed_s3_errors("ListObjectsV2"):
                page = next(pages, None)
            if page is None:
                return
            yield from ((found["Key"], found["LastModified"]) for found in page.get("Contents", ()))

    def stored_at(self, key: str) -> datetime:
        """When an object was written, by the server's clock."""
        with typed_s3_errors("HeadObject"):
            return self.s3.head_object(Bucket=self.name, Key=key)["LastModified"]

    def abort_uploads(self, prefix: str, *, newest: datetime) -> int:
        """Give up the multipart uploads that were begun before; how many there were."""
        with typed_s3_errors("ListMultipartUploads"):
            found = self.s3.list_multipart_uploads(Bucket=self.name, Prefix=prefix).get("Uploads", [])
        old = [upload for upload in found if upload["Initiated"] <= newest]
        for upload in old:
            with typed_s3_errors("AbortMultipartUpload"):
                self.s3.abort_multipart_upload(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])
        return len(old)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are removed already."""
        for start in range(0, len(keys), _MAX_DELETED):
            objects: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + _MAX_DELETED]]
            with typed_s3_errors("DeleteObjects"):
                self.s3.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialPart:
    """Some consecutive bytes of a partial: one object."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    """Who writes a partial, and which one it is."""

    token: str
    lineage: str


def parts_of(bucket: Bucket, partial: str) -> list[PartialPart]:
    """The objects of a partial that follow each other without a gap from its beginning."""
    owner = _read_owner(bucket, partial)
    return [] if owner is None else _chain(bucket, partial, owner.lineage)


def discard(bucket: Bucket, partial: str) -> None:
    """Forget a partial. Its owner first, so that its writer, if any, is refused."""
    bucket.delete([bucket.owner_key(partial)])
    bucket.delete(list(bucket.list(bucket.parts_prefix(partial))))


class S3Partial:
    """A PartialWriter in a bucket. Holds less than ``PART_BYTES`` and one chunk in memory."""

    def __init__(self, bucket: Bucket, partial: str) -> None:
        """Take the partial over, or begin it."""
        self._bucket = bucket
        self._partial = partial
        before = _read_owner(bucket, partial)
        self._parts = [] if before is None else _chain(bucket, partial, before.lineage)
        lineage = before.lineage if before is not None and self._parts else secrets.token_hex(8)
        self._owner = _Owner(token=secrets.token_hex(16), lineage=lineage)
        self._tail = bytearray()
        self._stored = sum(part.size for part in self._parts)
        self._is_finished = False
        document = {"token": self._owner.token, "lineage": lineage}
        bucket.put(bucket.owner_key(partial), json.dumps(document).encode())

    @property
    def held(self) -> int:
        """What is stored, and what is not stored yet."""
        return self._stored + len(self._tail)

    @property
    def lineage(self) -> str:
        """Made anew with each empty partial."""
        return self._owner.lineage

    def append(self, data: Chunk) -> int:
        """Add bytes at the end; see PartialWriter."""
        if self._is_finished:
            raise BlobOffsetError("the partial is whole already", held=self.held)
        self._tail += data
        if len(self._tail) >= PART_BYTES:
            self._flush()
        return self.held

    def finish(self, *, sha256: str) -> StoredBlob:
        """Compose the blob out of the objects; see PartialWriter."""
        self._flush()
        self._check_owner()
        n_bytes = self._stored
        key = self._bucket.blob_key(sha256)
        if n_bytes < _MIN_COPIED_BYTES or len(self._parts) == 1:
            self._write_whole(key)
        else:
            self._compose(key)
        self._is_finished = True
        return StoredBlob(sha256=sha256, n_bytes=n_bytes)

    def close(self) -> None:
        """Store what is not stored yet."""
        if self._tail and not self._is_finished:
            self._flush()

    def _flush(self) -> None:
        if not self._tail:
            return
        self._check_owner()
        size = len(self._tail)
        prefix = self._bucket.parts_prefix(self._partial, self._owner.lineage)
        # The token keeps two writers of one place from overwriting each other.
        part = PartialPart(
            key=f"{prefix}{self._stored:015d}-{size}-{self._owner.token}", offset=self._stored, size=size
        )
        try:
            self._bucket.put(part.key, self._tail)
        finally:
            # Where it failed, the bytes are sent again: ``held`` says no more than what is stored.
            self._tail = bytearray()
        self._parts.append(part)
        self._stored += size

    def _check_owner(self) -> None:
        if _read_owner(self._bucket, self._partial) != self._owner:
            self._tail = bytearray()
            raise PartialTakenOverError("another stream of this upload came later; ask how far it is")

    def _write_whole(self, key: str) -> None:
        if len(self._parts) == 1:
            with typed_s3_errors("CopyObject"):
                source = self._bucket.source(self._parts[0].key)
                self._bucket.s3.copy_object(Bucket=self._bucket.name, Key=key, CopySource=source)
            return
        self._bucket.put(key, b"".join(self._bucket.get(part.key) for part in self._parts))

    def _compose(self, key: str) -> None:
        s3, name = self._bucket.s3, self._bucket.name
        with typed_s3_errors("CreateMultipartUpload"):
            upload_id = s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        try:
            done = [
                self._compose_part(key, upload_id, number, group)
                for number, group in enumerate(_groups(self._parts), start=1)
            ]
            with typed_s3_errors("CompleteMultipartUpload"):
                s3.complete_multipart_upload(Bucket=name, Key=key, UploadId=upload_id, MultipartUpload={"Parts": done})
        except BaseException:
            with typed_s3_errors("AbortMultipartUpload"):
                s3.abort_multipart_upload(Bucket=name, Key=key, UploadId=upload_id)
            raise

    def _compose_part(
        self, key: str, upload_id: str, number: int, group: Sequence[PartialPart]
    ) -> CompletedPartTypeDef:
        s3, name = self._bucket.s3, self._bucket.name
        if len(group) == 1:
            with typed_s3_errors("UploadPartCopy"):
                source = self._bucket.source(group[0].key)
                copied = s3.upload_part_copy(
                    Bucket=name, Key=key, UploadId=upload_id, PartNumber=number, CopySource=source
                )
            return {"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]}
        # What breaks have left in small pieces is read and written as one.
        data = b"".join(self._bucket.get(part.key) for part in group)
        with typed_s3_errors("UploadPart"):
            sent = s3.upload_part(Bucket=name, Key=key, UploadId=upload_id, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": sent["ETag"]}


def _groups(parts: Iterable[PartialPart]) -> Iterator[list[PartialPart]]:
    """Neighbours together until they may be a part of a multipart upload; the last group may be smaller."""
    group: list[PartialPart] = []
    for part in parts:
        group.append(part)
        if sum(one.size for one in group) >= _MIN_COPIED_BYTES:
            yield group
            group = []
    if group:
        yield group


def _read_owner(bucket: Bucket, partial: str) -> _Owner | None:
    try:
        document = json.loads(bucket.get(bucket.owner_key(partial)))
    except BlobNotFoundError:
        return None
    return _Owner(token=document["token"], lineage=document["lineage"])


def _chain(bucket: Bucket, partial: str, lineage: str) -> list[PartialPart]:
    prefix = bucket.parts_prefix(partial, lineage)
    longest: dict[int, PartialPart] = {}
    for key in bucket.list(prefix):
        found = _PART_NAME.fullmatch(key.removeprefix(prefix))
        if found is None:
            continue
        part = PartialPart(key=key, offset=int(found[1]), size=int(found[2]))
        # Two writers may have stored the same place: either is what the site sent there.
        if part.offset not in longest or longest[part.offset].size < part.size:
            longest[part.offset] = part
    chain: list[PartialPart] = []
    position = 0
    while (following := longest.get(position)) is not None:
        chain.append(following)
        position += following.size
    return chain
