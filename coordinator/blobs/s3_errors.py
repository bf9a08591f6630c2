"""What an S3 server answers, as the blob store's typed errors. No credential is in any of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from coordinator.errors import BlobNotFoundError, BlobStoreFullError, BlobStoreUnavailableError

_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})
_INSUFFICIENT_STORAGE = 507
_FULL = frozenset({"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull"})
_NOT_OURS = frozenset({"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "NoSuchBucket", "403"})


@contextmanager
def typed_s3_errors(call: str, *, sha256: str = "") -> Iterator[None]:
    """Translate what boto3 raises.

    Raises:
        BlobNotFoundError: there is no such object.
        BlobStoreFullError: the server has no room, or the quota is used up.
        BlobStoreUnavailableError: any other answer, or none.
    """
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _ABSENT:
            raise BlobNotFoundError("no blob has this digest", sha256=sha256) from error
        if status == _INSUFFICIENT_STORAGE or code in _FULL:
            message = "the object store is full; nothing is lost, and an upload may be resumed later"
            raise BlobStoreFullError(message, call=call, s3_code=code) from error
        message = "the object store failed; it is tried again"
        if code in _NOT_OURS:
            message = "the object store refuses this coordinator; look at blobs.s3 and its credentials"
        raise BlobStoreUnavailableError(message, call=call, s3_code=code, status=status) from error
    except BotoCoreError as error:
        raise BlobStoreUnavailableError(
            "the object store does not answer; it is tried again", call=call, cause=type(error).__name__
        ) from error
