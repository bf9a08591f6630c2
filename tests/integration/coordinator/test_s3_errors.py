"""An object store that fails: what the blob store says, and that no key is in it. The server is a small HTTP one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coordinator.blobs.s3 import S3BlobStore, S3Options, open_s3_client
from coordinator.errors import BlobNotFoundError, BlobStoreFullError, BlobStoreUnavailableError, CoordinatorError

SECRET = "the-secret-that-nobody-may-see"
OpenStore = Callable[[int, str], S3BlobStore]


@pytest.fixture
def answer_with(tmp_path: Path) -> Iterator[OpenStore]:
    """A store at a server that gives every request the same answer."""
    ended: list[Callable[[], None]] = []
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = {SECRET}\n")

    def start(status: int, code: str) -> S3BlobStore:
        body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 # the base class names them

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = open_s3_client(
            S3Options(endpoint_url=f"http://127.0.0.1:{server.server_port}", credentials_file=credentials)
        )
        ended.extend([client.close, server.shutdown, thread.join, server.server_close])
        return S3BlobStore(client, bucket="wardround")

    yield start
    for end in ended:
        end()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (507, "InsufficientStorage", BlobStoreFullError),
        (403, "QuotaExceeded", BlobStoreFullError),
        (403, "AccessDenied", BlobStoreUnavailableError),
        (403, "SignatureDoesNotMatch", BlobStoreUnavailableError),
        (404, "NoSuchBucket", BlobStoreUnavailableError),
        (503, "SlowDown", BlobStoreUnavailableError),
        (500, "InternalError", BlobStoreUnavailableError),
    ],
)
def test_answer_of_a_failing_server_is_a_typed_error_without_a_key(
    answer_with: OpenStore, status: int, code: str, error: type[CoordinatorError]
) -> None:
    store = answer_with(status, code)
    with pytest.raises(error) as failed:
        store.put_bytes(b"data")
    assert SECRET not in repr(failed.value) + str(failed.value)
    assert failed.value.facts["s3_code"] == code


def test_missing_object_is_not_an_outage(answer_with: OpenStore) -> None:
    store = answer_with(404, "NoSuchKey")
    with pytest.raises(BlobNotFoundError):
        store._bucket.get("blobs/" + "0" * 64)


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[default]\naws_access_key_id = AKIDTEST\naws_secret_access_key = {SECRET}\n")
    client = open_s3_client(S3Options(endpoint_url="http://127.0.0.1:9", credentials_file=credentials))
    with pytest.raises(BlobStoreUnavailableError):
        S3BlobStore(client, bucket="wardround").put_bytes(b"data")
    client.close()


def test_profile_that_does_not_exist_is_said() -> None:
    with pytest.raises(BlobStoreUnavailableError):
        open_s3_client(S3Options(profile="no-such-profile-of-wardround"))
