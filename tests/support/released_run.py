"""A completed run as the engine leaves it behind, with real keys and a chain of rounds that holds; and who signs it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import rfc8785
from sqlalchemy.orm import Session

from coordinator.blobs.filesystem import FilesystemBlobStore
from coordinator.ca.authority import CertificateAuthority, create_enrolment_identity, create_root
from coordinator.db import models
from coordinator.db.audit import append_audit
from coordinator.db.tx import Database
from coordinator.oidc.provider import IdentityProvider
from coordinator.rounds.run_machine import RunState
from coordinator.services.permissions import Principal, Role
from coordinator.services.reauthenticate import Shown
from coordinator.services.release_adapter import create_release_candidate, open_candidate_archive, open_release_archive
from coordinator.services.resources import Addresses, Resources
from coordinator.services.show_releases import ReleaseView, show_release
from coordinator.services.sign_release import SignatureRequest, sign_release
from coordinator.services.signing_passphrases import set_passphrase
from coordinator.services.users import add_user
from fl_protocol.audit.events import AuditKind
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.packing import pack, u32, u64
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import SignedBody, sign_body
from fl_protocol.spec.round_spec import NO_DIGEST, RoundKind, RoundManifest
from fl_protocol.spec.run_spec import RunSpec, bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.run_specs import SITE_NAMES, run_spec_document
from wardround.evidence.release_folder import unpack_release

FIRST = RunId("run-" + "a" * 26)
SECOND = RunId("run-" + "b" * 26)
THIRD = RunId("run-" + "c" * 26)
DATASET = "medical-qa"
PASSPHRASES = {"lead": "correct horse battery", "privacy": "staple the other one"}
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(
        TensorSpec(name="base_model.model.q.lora_A.weight", shape=(2, 4)),
        TensorSpec(name="base_model.model.q.lora_B.weight", shape=(4, 2)),
    ),
    peft_config={"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
)


def state_of(version: int, first: float) -> PublicState:
    """The public state whose weights count up from ``first``."""
    return PublicState(version=version, adapter=LAYOUT.unflatten(np.arange(16, dtype=np.float32) + np.float32(first)))


class RealClock(Protocol):
    """Tells the time."""

    def now(self) -> datetime: ...


def open_resources(folder: Path, clock: RealClock, *, identity_provider: IdentityProvider | None = None) -> Resources:
    """What a coordinator's services work with, in an empty folder; whoever opened it disposes of ``db``."""
    certificate, key = create_root(consortium="Test", now=clock.now())
    db = Database.from_path(folder / "coordinator.db")
    models.Base.metadata.create_all(db.engine)
    return Resources(
        db=db,
        blobs=FilesystemBlobStore(folder / "blobs"),
        authority=CertificateAuthority(certificate=certificate, key=key),
        enrolment_certificate_pem=create_enrolment_identity(now=clock.now()).certificate_pem,
        signer=seeded_signer("coordinator"),
        release_signer=seeded_signer("release"),
        clock=clock,
        addresses=Addresses(gateway="gateway.example:443", enrolment="enrol.example:443"),
        code_lifetime_s=3600.0,
        max_blob_bytes=1 << 20,
        identity_provider=identity_provider,
    )


@dataclass(kw_only=True)
class CompletedRuns:
    """Puts completed runs into a coordinator's database, and people who may sign what they made."""

    resources: Resources
    sites: dict[str, EcdsaSigner] = field(
        default_factory=lambda: {name: seeded_signer(f"site {name}") for name in SITE_NAMES}
    )
    people: dict[str, Principal] = field(default_factory=dict)
    document: dict[str, object] = field(default_factory=lambda: run_spec_document({"rounds": 2}))
    layout: AdapterLayout = LAYOUT

    def add_sites(self) -> None:
        now = self.resources.now()

        def write(session: Session) -> None:
            for name, signer in self.sites.items():
                if session.get(models.Site, name) is None:
                    session.add(
                        models.Site(
                            site_id=name,
                            state="ENROLLED",
                            signing_spki=signer.spki_der,
                            signing_key_sha256=spki_fingerprint(signer.spki_der),
                            created_at=now,
                            enrolled_at=now,
                        )
                    )

        self.resources.db.run_tx("test", write)

    def person(self, name: str, *roles: Role) -> Principal:
        """A user with these roles and, where one is listed, a passphrase."""
        if name not in self.people:
            view = add_user(self.resources, name=name, roles=roles, actor="user:admin")
            principal = Principal(user_id=view.user_id, name=name, roles=frozenset(roles), token_id=f"token-{name}")
            if name in PASSPHRASES:
                set_passphrase(self.resources, principal=principal, passphrase=PASSPHRASES[name], current=None)
            self.people[name] = principal
        return self.people[name]

    @property
    def lead(self) -> Principal:
        return self.person("lead", Role.STUDY_LEAD)

    @property
    def privacy(self) -> Principal:
        return self.person("privacy", Role.PRIVACY_OFFICER)

    def complete(
        self,
        run_id: RunId = FIRST,
        *,
        initial: PublicState | None = None,
        final: PublicState | None = None,
        weights_from: float = 0.0,
        counted: Sequence[str] = SITE_NAMES,
    ) -> RunId:
        """A run of two training rounds and an evaluation, all committed."""
        self.add_sites()
        states = [
            initial or self._state(0, -9.0),
            self._state(1, weights_from - 1.0),
            final or self._state(2, weights_from),
        ]
        spec = self._spec(states[0])
        blob = self.resources.blobs.put_bytes(states[2].to_bytes()).sha256
        now = self.resources.now()

        def write(session: Session) -> None:
            session.add(_run(run_id, spec, states, blob, now, layout=self.layout))
            session.flush()
            session.add_all(self._approval(run_id, spec, name, now) for name in self.sites)
            previous = str(NO_DIGEST)
            for index, kind in enumerate((RoundKind.TRAIN, RoundKind.TRAIN, RoundKind.EVALUATE)):
                previous = self._round(
                    session,
                    _manifest(run_id, spec, index, kind, states[min(index, 2)], previous, now),
                    after=states[min(index + 1, 2)],
                    counted=counted,
                    now=now,
                )
            session.flush()
            facts = {"run_id": run_id, "state": "COMPLETED"}
            append_audit(session, AuditKind.RUN_STATE, actor="coordinator", facts=facts, now=now)

        self.resources.db.run_tx("test", write)
        return run_id

    def candidate(self, run_id: RunId = FIRST) -> ReleaseView:
        return create_release_candidate(self.resources, run_id)

    def sign(self, release_id: str, name: str, *, meaning: str = "fit for research") -> ReleaseView:
        """One of the two people of ``PASSPHRASES`` signs what the release now is."""
        signer = self.lead if name == "lead" else self.privacy
        request = SignatureRequest(
            meaning=meaning, manifest_sha256=show_release(self.resources, release_id).manifest_sha256
        )
        shown = Shown(passphrase=PASSPHRASES[name])
        return sign_release(self.resources, release_id=release_id, request=request, signer=signer, shown=shown)

    def publish(self, run_id: RunId = FIRST) -> str:
        """Complete what is not, make the candidate, and have both sign."""
        release_id = self.candidate(run_id).release_id
        self.sign(release_id, "lead", meaning="reviewed the evaluation; fit for research")
        assert self.sign(release_id, "privacy", meaning="no objection of the patients' side").state == "PUBLISHED"
        return release_id

    def unpacked(self, release_id: str, folder: Path, *, is_candidate: bool = False) -> Path:
        archive = folder / f"{release_id}.zip"
        chunks = (open_candidate_archive if is_candidate else open_release_archive)(self.resources, release_id)
        archive.write_bytes(b"".join(chunks))
        unpack_release(archive, folder / release_id)
        archive.unlink()
        return folder / release_id

    def _state(self, version: int, first: float) -> PublicState:
        counted = np.arange(self.layout.n_parameters, dtype=np.float32) + np.float32(first)
        return PublicState(version=version, adapter=self.layout.unflatten(counted))

    def _spec(self, initial: PublicState) -> RunSpec:
        spec = parse_run_spec(self.document)
        pins = {SiteId(name): spki_fingerprint(signer.spki_der) for name, signer in self.sites.items()}
        resolved = resolve_run_spec(spec, pins)
        return bind_adapter(resolved, layout_sha256=self.layout.digest(), initial_sha256=initial.digest())

    def _approval(self, run_id: RunId, spec: RunSpec, name: str, now: datetime) -> models.Approval:
        document = {
            "run_id": run_id,
            "run_spec_sha256": spec.digest(),
            "decision": "approved",
            "dataset": DATASET,
            "purpose": "research",
            "local_user": "dr.who",
            "at": now.isoformat(),
        }
        signed = sign_body(self.sites[name], "WR/sig/approval", rfc8785.dumps({**document}))
        return models.Approval(
            run_id=run_id,
            site_id=name,
            decision="approved",
            statement_body=signed.body,
            statement_signature=signed.signature,
            at=now,
        )

    def _round(
        self,
        session: Session,
        manifest: RoundManifest,
        *,
        after: PublicState,
        counted: Sequence[str],
        now: datetime,
    ) -> str:
        index = manifest.round_index
        m0 = sign_body(self.resources.signer, "SA1/sig/M0", manifest.encode())
        m10 = sign_body(self.resources.signer, "SA1/sig/M10", b"result %d" % index)
        result = hashlib.sha256(m10.encode())
        n_records = 240 if manifest.kind is RoundKind.TRAIN else 0
        train_loss = 3.5 - index if n_records else None
        report = {"train_loss": train_loss, "eval_loss": 3.0 - index, "n_records": n_records, "n_eval_records": 48}
        session.add(_round_row(manifest, m0, {**report, "n_clipped": 1 if n_records else 0}, after, now))
        session.flush()
        session.add(_exchange_row(manifest, m10, counted, now))
        session.flush()
        for name in counted:
            body = pack(manifest.run_id.encode(), u32(index), result.digest(), bytes.fromhex(after.digest()))
            ack = sign_body(self.sites[name], "WR/sig/ack", body)
            session.add(_participation_row(manifest, name, ack, now))
            session.flush()
            session.add(self._upload_row(manifest, name, now))
        session.flush()
        return result.hexdigest()

    def _upload_row(self, manifest: RoundManifest, name: str, now: datetime) -> models.Upload:
        context = manifest.exchange(0, 0).encode()
        body = pack(context, name.encode(), bytes(32), u64(128), bytes(32), now.isoformat().encode())
        receipt = sign_body(self.resources.signer, "WR/sig/receipt", body)
        return models.Upload(
            **_key(manifest),
            exchange_index=0,
            exchange_attempt=0,
            site_id=name,
            header_body=b"header",
            header_signature=b"signature",
            n_bytes=128,
            received_bytes=128,
            started_at=now,
            completed_at=now,
            receipt_body=receipt.body,
            receipt_signature=receipt.signature,
        )


def _key(manifest: RoundManifest) -> dict[str, object]:
    return {
        "run_id": manifest.run_id,
        "round_index": manifest.round_index,
        "round_attempt": manifest.round_attempt,
    }


def _manifest(
    run_id: RunId, spec: RunSpec, index: int, kind: RoundKind, state: PublicState, previous: str, now: datetime
) -> RoundManifest:
    return RoundManifest(
        run_id=run_id,
        round_index=index,
        round_attempt=0,
        kind=kind,
        suite="SA1",
        run_spec_sha256=spec.digest(),
        public_state_sha256=state.digest(),
        public_state_version=state.version,
        previous_result_sha256=Sha256Hex(previous),
        payload_layout_sha256=Sha256Hex("ef" * 32),
        min_cohort=3,
        audit_window_s=86400,
        opened_at=now.isoformat(),
        audit_size=0,
        audit_head=NO_DIGEST,
    )


def _run(
    run_id: RunId, spec: RunSpec, states: Sequence[PublicState], blob: str, now: datetime, *, layout: AdapterLayout
) -> models.Run:
    return models.Run(
        run_id=run_id,
        name=spec.name,
        state=RunState.COMPLETED.value,
        run_spec_json=spec.canonical_bytes(),
        run_spec_sha256=spec.digest(),
        layout_json=layout.canonical_bytes(),
        layout_blob_sha256="0" * 64,
        initial_blob_sha256="0" * 64,
        public_state_version=2,
        public_state_sha256=states[2].digest(),
        public_state_blob_sha256=blob,
        created_by="user:lead",
        created_at=now,
        finished_at=now,
    )


def _round_row(
    manifest: RoundManifest, m0: SignedBody, report: dict[str, object], after: PublicState, now: datetime
) -> models.Round:
    return models.Round(
        **_key(manifest),
        kind=manifest.kind.value,
        state="COMMITTED",
        manifest_body=m0.body,
        manifest_signature=m0.signature,
        opened_at=now,
        deadline_at=now + timedelta(hours=1),
        finished_at=now + timedelta(seconds=20),
        report=report,
        state_version_after=after.version,
        state_sha256_after=after.digest(),
    )


def _exchange_row(manifest: RoundManifest, m10: SignedBody, counted: Sequence[str], now: datetime) -> models.Exchange:
    return models.Exchange(
        **_key(manifest),
        exchange_index=0,
        exchange_attempt=0,
        state="SUMMED",
        invited=list(SITE_NAMES),
        arrived=[],
        u3=list(counted),
        opened_at=now,
        phase_deadline_at=now,
        finished_at=now,
        result_body=m10.body,
        result_signature=m10.signature,
        sum_blob_sha256="d" * 64,
        sum_bytes=128,
        transcript_root="e" * 64,
    )


def _participation_row(manifest: RoundManifest, name: str, ack: SignedBody, now: datetime) -> models.Participation:
    return models.Participation(
        **_key(manifest),
        site_id=name,
        state="COUNTED",
        updated_at=now,
        acknowledged_at=now,
        acknowledgement_body=ack.body,
        acknowledgement_signature=ack.signature,
    )
