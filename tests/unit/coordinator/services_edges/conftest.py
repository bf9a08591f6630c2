"""The edge services over a database and a blob folder of their own, with a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.ca.authority import CertificateAuthority, create_enrolment_identity, create_root
from coordinator.ca.enrolment import enrolment_code_from_text, possession_message
from coordinator.db.models import Base
from coordinator.db.tx import Database
from coordinator.services.enrol_site import EnrolmentRequest
from coordinator.services.resources import Addresses, Resources
from fl_protocol.folds.public_state import PublicState
from fl_protocol.pki.csr import make_csr
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass
class HandClock:
    """Stands still until it is moved."""

    at: datetime = START

    def now(self) -> datetime:
        return self.at

    def move(self, **duration: float) -> None:
        self.at += timedelta(**duration)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def resources(tmp_path: Path, clock: HandClock) -> Iterator[Resources]:
    certificate, key = create_root(consortium="Test", now=START)
    db = Database.from_path(tmp_path / "coordinator.db")
    Base.metadata.create_all(db.engine)
    yield Resources(
        db=db,
        blobs=FilesystemBlobStore(tmp_path / "blobs"),
        authority=CertificateAuthority(certificate=certificate, key=key),
        enrolment_certificate_pem=create_enrolment_identity(now=START).certificate_pem,
        signer=EcdsaSigner(generate_private_key()),
        release_signer=EcdsaSigner(generate_private_key()),
        clock=clock,
        addresses=Addresses(gateway="gateway.example:443", enrolment="enrol.example:443"),
        code_lifetime_s=3600.0,
        max_blob_bytes=1 << 20,
    )
    db.dispose()


@dataclass
class SiteKeys:
    """What a site makes before it enrols."""

    signer: EcdsaSigner = field(default_factory=lambda: EcdsaSigner(generate_private_key()))

    def request(self, code: str) -> EnrolmentRequest:
        secret = enrolment_code_from_text(code).secret
        csr = make_csr(generate_private_key())
        return EnrolmentRequest(
            code_secret=secret,
            tls_csr_der=csr,
            signing_spki_der=self.signer.spki_der,
            possession_signature=self.signer.sign(possession_message(secret, csr)),
            agent_version="test",
        )


@pytest.fixture
def new_keys() -> Callable[[], SiteKeys]:
    return SiteKeys


@pytest.fixture
def layout() -> AdapterLayout:
    return AdapterLayout(
        kind="lora",
        tensors=(
            TensorSpec(name="base_model.model.q.lora_A.weight", shape=(2, 4)),
            TensorSpec(name="base_model.model.q.lora_B.weight", shape=(4, 2)),
        ),
        peft_config={"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
    )


@pytest.fixture
def final_state(layout: AdapterLayout) -> PublicState:
    return PublicState(version=2, adapter=layout.unflatten(np.arange(16, dtype=np.float32)))
