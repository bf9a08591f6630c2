"""A real coordinator process with real TLS on loopback, and sites that speak to it with nothing but gRPC and keys."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import rfc8785
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from coordinator.__main__ import cli
from fl_protocol.folds.public_state import PublicState
from fl_protocol.packing import pack
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key, pem_from_private_key
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.wire.v1 import enrolment_pb2, enrolment_pb2_grpc, errors_pb2, signed_pb2

START_S = 120.0
CALL_S = 20.0


@dataclass
class Coordinator:
    """A coordinator process and its folder."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.directory / "coordinator.yaml"

    def run(self, *arguments: str) -> Result:
        """The command in this process: what it prints and returns is what it prints and returns in another."""
        return CliRunner().invoke(cli, arguments, env=self.environment)

    def run_process(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "coordinator", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            timeout=START_S,
            check=False,
        )

    def init(self) -> dict[str, str]:
        ports = ("--rest-port", "0", "--gateway-port", "0", "--enrolment-port", "0")
        done = self.run("--json", "init", str(self.directory), *ports)
        assert done.exit_code == 0, done.output
        answer: dict[str, str] = json.loads(done.stdout)
        return answer

    def start(self) -> None:
        log = (self.directory / "serve.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coordinator", "serve", "--config", str(self.config)],
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + START_S
        while not (self.directory / "serve.json").exists():
            assert self.process.poll() is None, (self.directory / "serve.log").read_text()
            assert time.monotonic() < deadline, "the coordinator did not say that it is ready"
            time.sleep(0.05)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_S)

    def addresses(self) -> dict[str, str]:
        document: dict[str, str] = json.loads((self.directory / "serve.json").read_text())
        return document

    def admin_token(self) -> str:
        return (self.directory / "admin.token").read_text().strip()

    def client(self, token: str | None) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.directory / "root.pem"))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(
            base_url=f"https://{self.addresses()['rest']}", verify=trusted, headers=headers, timeout=CALL_S
        )


@dataclass
class SiteKeys:
    """The two keys of a site, made at the site."""

    tls: ec.EllipticCurvePrivateKey = field(default_factory=generate_private_key)
    signer: EcdsaSigner = field(default_factory=lambda: EcdsaSigner(generate_private_key()))


@dataclass
class EnrolledSite:
    """A site with its certificate, as its agent would keep it."""

    name: str
    keys: SiteKeys
    answer: enrolment_pb2.EnrolResponse

    def channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.answer.root_pem,
            private_key=pem_from_private_key(self.keys.tls),
            certificate_chain=self.answer.certificate_pem,
        )
        options = (("grpc.ssl_target_name_override", self.answer.gateway_server_name),)
        return grpc.secure_channel(self.answer.gateway_address, credentials, options=options)

    def statement(self, run: dict[str, object], decision: str, *, at: str, run_id: str | None = None) -> SignedBody:
        body = rfc8785.dumps(
            {
                "run_id": run_id or str(run["run_id"]),
                "run_spec_sha256": str(run["run_spec_sha256"]),
                "decision": decision,
                "dataset": "medical-qa",
                "purpose": "research",
                "local_user": "dr.who",
                "at": at,
            }
        )
        return sign_body(self.keys.signer, "WR/sig/approval", body)


def refusal_of(error: grpc.RpcError) -> errors_pb2.Refusal:
    metadata = dict(error.trailing_metadata() or ())
    return errors_pb2.Refusal.FromString(metadata["wardround-refusal-bin"])


def secret_of(code: str) -> bytes:
    return base64.b32decode(code.split("-")[1])


def enrol(code: str, address: str, keys: SiteKeys, *, signature: bytes | None = None) -> enrolment_pb2.EnrolResponse:
    """What the agent does: pin the listener by the code, then show the secret and both keys."""
    host, port = address.rsplit(":", 1)
    pem = ssl.get_server_certificate((host, int(port)))
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().startswith(code.split("-")[2])
    csr = make_csr(keys.tls)
    secret = secret_of(code)
    proof = sign_body(keys.signer, "WR/sig/enrolment", pack(hashlib.sha256(secret).digest(), csr)).signature
    options = (("grpc.ssl_target_name_override", "enrolment.wardround.internal"),)
    credentials = grpc.ssl_channel_credentials(root_certificates=pem.encode())
    with grpc.secure_channel(address, credentials, options=options) as channel:
        return enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(
            enrolment_pb2.EnrolRequest(
                code_secret=secret,
                tls_csr_der=csr,
                signing_spki_der=keys.signer.spki_der,
                possession_signature=proof if signature is None else signature,
                agent_version="test",
            ),
            timeout=CALL_S,
        )


@pytest.fixture(scope="session")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    # All tests are one address to it, and many of them fail to say who they are.
    many = {"WARDROUND_RATE_LIMITS__FAILURES_BURST": "100000", "WARDROUND_RATE_LIMITS__REQUESTS_BURST": "100000"}
    made = Coordinator(directory=tmp_path_factory.mktemp("coordinator") / "state", environment=many)
    made.init()
    made.start()
    yield made
    assert made.stop() == 0, (made.directory / "serve.log").read_text()
    assert not (made.directory / "serve.json").exists()


@pytest.fixture
def new_coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    made = Coordinator(directory=tmp_path / "other")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop()


@pytest.fixture(scope="session")
def make_coordinator() -> Callable[..., Coordinator]:
    """One of a test's own, with its own settings; the test starts and stops it."""
    return Coordinator


@pytest.fixture
def admin(coordinator: Coordinator) -> Iterator[httpx.Client]:
    with coordinator.client(coordinator.admin_token()) as client:
        yield client


@pytest.fixture
def make_user(coordinator: Coordinator, admin: httpx.Client) -> Iterator[Callable[..., httpx.Client]]:
    clients: list[httpx.Client] = []

    def make(name: str, *roles: str) -> httpx.Client:
        user = admin.post("/api/v1/users", json={"name": name, "roles": list(roles)}).json()
        token = admin.post("/api/v1/tokens", json={"user_id": user["user_id"], "label": "test"}).json()["token"]
        clients.append(coordinator.client(token))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def lead(make_user: Callable[..., httpx.Client]) -> httpx.Client:
    """A study lead: whoever creates a run does not start it, so that an admin alone does not come far."""
    return make_user(f"lead {os.urandom(4).hex()}", "study-lead")


@pytest.fixture
def invite(admin: httpx.Client) -> Callable[[str], dict[str, str]]:
    def ask(name: str) -> dict[str, str]:
        answer = admin.post("/api/v1/sites", json={"name": name})
        assert answer.status_code == 201, answer.text
        document: dict[str, str] = answer.json()
        return document

    return ask


@pytest.fixture
def enrolled(invite: Callable[[str], dict[str, str]]) -> Callable[[str], EnrolledSite]:
    def make(name: str) -> EnrolledSite:
        invitation = invite(name)
        keys = SiteKeys()
        return EnrolledSite(name, keys, enrol(invitation["code"], invitation["enrolment_address"], keys))

    return make


@dataclass
class Adapter:
    """A small initial adapter as ``init-adapter`` would make it."""

    layout: bytes
    layout_sha256: str
    initial: bytes
    initial_sha256: str


@pytest.fixture(scope="session")
def adapter() -> Adapter:
    layout = AdapterLayout(
        kind="lora",
        tensors=(
            TensorSpec(name="base_model.model.q.lora_A.weight", shape=(8, 16)),
            TensorSpec(name="base_model.model.q.lora_B.weight", shape=(16, 8)),
        ),
        peft_config={"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
    )
    state = PublicState(version=0, adapter=layout.unflatten(np.zeros(256, np.float32)))
    return Adapter(layout.canonical_bytes(), layout.digest(), state.to_bytes(), state.digest())


@pytest.fixture
def run_document(adapter: Adapter) -> Callable[..., dict[str, object]]:
    def make(*sites: str, rounds: int = 1) -> dict[str, object]:
        return {
            "apiVersion": "wardround/v1",
            "kind": "Run",
            "name": "medical-qa",
            "purpose": "research",
            "task": {"kind": "instruction-tuning"},
            "base_model": {"name": "tiny", "sha256": "ab" * 32},
            "adapter": {
                "kind": "lora",
                "rank": 8,
                "alpha": 16,
                "targets": ["q_proj"],
                "layout_sha256": adapter.layout_sha256,
                "initial_sha256": adapter.initial_sha256,
            },
            "data": {"dataset": "medical-qa"},
            "local": {"rule": "plain", "steps": 1, "batch_size": 1, "max_length": 16, "learning_rate": 1e-4},
            "aggregation": {"algorithm": "fedavg-lora"},
            "cohort": {"sites": list(sites), "quorum": 3},
            "privacy": {"clip_norm": 1.0, "mechanism": "none"},
            "rounds": rounds,
        }

    return make


@pytest.fixture
def put_adapter(admin: httpx.Client, adapter: Adapter) -> dict[str, str]:
    digests = {}
    for key, content in (("layout_blob_sha256", adapter.layout), ("initial_blob_sha256", adapter.initial)):
        sha256 = hashlib.sha256(content).hexdigest()
        answer = admin.put(f"/api/v1/blobs/{sha256}", content=content)
        assert answer.status_code == 201, answer.text
        assert answer.json() == {"sha256": sha256, "size": len(content)}
        digests[key] = sha256
    return digests


@pytest.fixture
def tools() -> Tools:
    return Tools()


class Tools:
    """Test folders are no packages: what tests need from here comes as a fixture."""

    enrol = staticmethod(enrol)
    refusal_of = staticmethod(refusal_of)
    secret_of = staticmethod(secret_of)
    keys = SiteKeys
    fingerprint = staticmethod(spki_fingerprint)

    @staticmethod
    def proto(signed: SignedBody) -> signed_pb2.SignedBody:
        return signed_pb2.SignedBody(body=signed.body, signature=signed.signature)
