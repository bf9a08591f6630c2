"""Two gateways on one bucket of a real S3 server, each of which gets half of an upload; and what doctor says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.transport import running_rig, site_client, uploader_of
from coordinator.blobs.s3 import S3BlobStore, S3Options, open_s3_client
from coordinator.doctor.table import diagnose
from fl_protocol.clock import SystemClock
from fl_protocol.wire.convert import proto_from_exchange
from fl_protocol.wire.v1 import round_pb2
from tests.support.blob_names import blob_name
from tests.support.s3_server import s3_server

MIB = 1 << 20
SITE = "site-00"

pytestmark = pytest.mark.system


async def test_upload_begun_at_one_replica_is_finished_at_the_other(tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as server:
        section = tmp_path / "blobs.yaml"
        section.write_text(
            "blobs:\n  kind: s3\n  s3:\n"
            f"    bucket: {server.bucket}\n    prefix: study/\n    endpoint_url: {server.endpoint_url}\n"
            f"    credentials_file: {server.credentials_file}\n"
        )
        folder = tmp_path / "rig"
        arguments = ("--parameters", "3000000", "--blobs", str(section))
        with running_rig(folder, *arguments) as rig, running_rig(folder) as other:
            upload = rig.upload(SITE)
            data = upload.path.read_bytes()[: upload.n_bytes]

            async def half():  # noqa: ANN202
                exchange = proto_from_exchange(upload.context)
                yield round_pb2.UploadBlobRequest(
                    header=round_pb2.UploadHeader(exchange=exchange, masked_input=upload.header, offset=0)
                )
                for start in range(0, 9 * MIB, MIB):
                    chunk = round_pb2.BlobChunk(offset=start, data=data[start : start + MIB])
                    yield round_pb2.UploadBlobRequest(chunk=chunk)
                await asyncio.Event().wait()

            async with site_client(rig, SITE) as client, site_client(other, SITE) as beside:
                call = client.rounds.UploadBlob(half(), timeout=60)
                async with asyncio.timeout(60):
                    # An object of 8 MiB is in the bucket; the chunk after it is in the older gateway's memory.
                    while True:
                        if (await beside.query_upload(upload.context)).received_bytes >= 8 * MIB:
                            break
                        await asyncio.sleep(0.1)
                await uploader_of(other, beside, SITE).upload(upload)
                call.cancel()
        client_of_server = open_s3_client(
            S3Options(endpoint_url=server.endpoint_url, credentials_file=server.credentials_file)
        )
        store = S3BlobStore(client_of_server, bucket=server.bucket, prefix="study/")
        assert store.read(blob_name(data)) == data
        client_of_server.close()
        config = folder / "coordinator" / "coordinator.yaml"
        findings = {found.name: found for found in diagnose(config, clock=SystemClock())}
        assert findings["blobs"].code == "blobs-good", findings["blobs"].message
