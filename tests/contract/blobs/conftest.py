"""The stores that keep the contract: the folder in `make test`, S3 against a real server in `make test-system`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.blobs.s3 import S3BlobStore, S3Options, open_s3_client
from coordinator.blobs.store import BlobStore
from tests.support.s3_server import S3Server, s3_server

OpenStore = Callable[[], BlobStore]


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.system)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same empty store again and again, as replicas and restarts do."""
    if request.param == "folder":
        yield lambda: FilesystemBlobStore(tmp_path / "blobs")
        return
    server: S3Server = request.getfixturevalue("object_server")
    client = open_s3_client(S3Options(endpoint_url=server.endpoint_url, credentials_file=server.credentials_file))
    prefix = f"t-{secrets.token_hex(6)}/"
    yield lambda: S3BlobStore(client, bucket=server.bucket, prefix=prefix)
    client.close()


@pytest.fixture
def store(open_store: OpenStore) -> BlobStore:
    return open_store()
