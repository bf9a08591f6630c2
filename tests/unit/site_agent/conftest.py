"""One site with a key, a database, a clock that stands still and one run in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.ids import RunId, SiteId
from fl_protocol.pki.certificates import (
    LeafNames,
    Validity,
    issue_leaf,
    make_ca_certificate,
    make_enrolment_certificate,
    new_serial,
)
from fl_protocol.pki.identity import site_uri
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.pki.tls import pem_from_certificate
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.run_specs import SITE_NAMES, pin_of, run_spec_document
from site_agent.approvals.run_records import RunInHand
from site_agent.audit.store import AuditLog
from site_agent.db.tx import SiteDb, open_site_db
from site_agent.policy.evaluate import DatasetFacts, SiteLedger
from site_agent.policy.rules import SitePolicy, parse_policy

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
OWN_NAME = SiteId("st-mary")


@dataclass
class StandingClock:
    instant: datetime = NOW

    def now(self) -> datetime:
        return self.instant

    def pass_time(self, **duration: float) -> datetime:
        self.instant += timedelta(**duration)
        return self.instant


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(scope="session")
def site_key() -> ec.EllipticCurvePrivateKey:
    return generate_private_key()


@pytest.fixture
def signer(site_key: ec.EllipticCurvePrivateKey) -> EcdsaSigner:
    return EcdsaSigner(site_key)


@pytest.fixture
def site_db(tmp_path: Path) -> Iterator[SiteDb]:
    db = open_site_db(tmp_path / "site.db")
    yield db
    db.close()


@pytest.fixture
def audit_log(signer: EcdsaSigner, clock: StandingClock) -> AuditLog:
    return AuditLog(signer, clock, "site:st-mary")


@pytest.fixture(scope="session")
def layout() -> AdapterLayout:
    tensors = (
        TensorSpec(name="base_model.model.q_proj.lora_A.weight", shape=(8, 16)),
        TensorSpec(name="base_model.model.q_proj.lora_B.weight", shape=(16, 8)),
    )
    return AdapterLayout(kind="lora", tensors=tensors, peft_config={"r": 8})


@pytest.fixture
def make_run_spec(signer: EcdsaSigner, layout: AdapterLayout) -> Callable[..., RunSpec]:
    """A run among this site and two others, changed by path."""

    def make(changes: Mapping[str, object] | None = None) -> RunSpec:
        spec = parse_run_spec(run_spec_document(changes))
        pins: dict[SiteId, str] = {SiteId(name): pin_of(name) for name in spec.cohort.names}
        pins[OWN_NAME] = spki_fingerprint(signer.spki_der)
        resolved = resolve_run_spec(spec, pins)
        return bind_adapter(resolved, layout_sha256=layout.digest(), initial_sha256=pin_of("initial"))

    return make


@pytest.fixture
def run_spec(make_run_spec: Callable[..., RunSpec]) -> RunSpec:
    return make_run_spec()


@pytest.fixture
def run_in_hand(run_spec: RunSpec, layout: AdapterLayout) -> RunInHand:
    return RunInHand(
        run_id=RunId("run-" + "a" * 26),
        name=run_spec.name,
        run_spec_sha256=run_spec.digest(),
        run_spec_json=run_spec.canonical_bytes(),
        layout_json=layout.canonical_bytes(),
        initial_state_sha256=pin_of("initial"),
    )


def open_policy_document() -> dict[str, object]:
    return {
        "tasks": ["instruction-tuning"],
        "base_models": ["sha256:" + "ab" * 32],
        "adapters": {"kinds": ["lora"], "max_rank": 8},
        "datasets": {"medical-qa": {"purposes": ["research"], "min_records": 100}},
        "secure_aggregation": {"min_cohort": 3, "assumed_colluders": 0},
        "privacy": {"without_dp": "allowed"},
        "egress": {"max_bytes_per_round": 200_000_000},
        "approval": "manual",
    }


@pytest.fixture
def policy_document() -> dict[str, object]:
    """A policy under which the run in hand is just permitted."""
    return open_policy_document()


@pytest.fixture
def open_policy(policy_document: dict[str, object]) -> SitePolicy:
    return parse_policy(policy_document)


@pytest.fixture
def site_ledger(signer: EcdsaSigner) -> SiteLedger:
    return SiteLedger(
        site_id=OWN_NAME,
        signing_key_sha256=spki_fingerprint(signer.spki_der),
        datasets={"medical-qa": DatasetFacts(purposes=frozenset({"research"}), n_records=100, n_patients=40)},
        peers={name: pin_of(name) for name in SITE_NAMES if name != OWN_NAME},
        payload_bytes=1000,
    )


@dataclass(frozen=True)
class Authority:
    """A coordinator's CA and enrolment listener, without a network."""

    key: ec.EllipticCurvePrivateKey
    certificate_pem: bytes
    listener_key: ec.EllipticCurvePrivateKey
    listener_der: bytes
    validity: Validity

    @property
    def listener_key_pem(self) -> bytes:
        return self.listener_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(self, public_key: ec.EllipticCurvePublicKey, *, site_id: SiteId = OWN_NAME) -> bytes:
        from cryptography import x509

        certificate = issue_leaf(
            self.key,
            x509.load_pem_x509_certificate(self.certificate_pem),
            public_key=public_key,
            common_name=site_id,
            names=LeafNames(uris=(site_uri(site_id),)),
            validity=self.validity,
            serial=new_serial(),
        )
        return pem_from_certificate(certificate)

    def renewed(self) -> Authority:
        """The same listener behind another root."""
        other = make_authority()
        return replace(self, key=other.key, certificate_pem=other.certificate_pem)


def make_authority() -> Authority:
    key, listener_key = generate_private_key(), generate_private_key()
    validity = Validity(not_before=NOW - timedelta(days=1), not_after=NOW + timedelta(days=365))
    root = make_ca_certificate(key, common_name="Wardround test", validity=validity, serial=new_serial())
    listener = make_enrolment_certificate(listener_key, validity=validity, serial=new_serial())
    return Authority(
        key=key,
        certificate_pem=pem_from_certificate(root),
        listener_key=listener_key,
        listener_der=listener.public_bytes(serialization.Encoding.DER),
        validity=validity,
    )


@pytest.fixture
def authority() -> Authority:
    return make_authority()
