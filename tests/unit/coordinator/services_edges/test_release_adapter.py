# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load as load_safetensors
from sqlalchemy import func, select

from coordinator.db import models
from coordinator.db.audit import append_audit
from coordinator.errors import NotFoundError
from coordinator.rounds.run_machine import RunState
from coordinator.services.refusals import RequestInvalidError, StateConflictError
from coordinator.services.release_adapter import (
    approve_release,
    create_release_candidate,
    open_release_archive,
    release_id_for,
    withdraw_release,
)
from fl_protocol.audit.events import AuditKind
from fl_protocol.ids import RunId
from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import sign_body
from fl_protocol.testing.run_specs import SITE_NAMES, resolved_run_spec
from wardround.errors import EvidenceFaultError
from wardround.evidence.release_folder import unpack_release, verify_release_folder

RUN = RunId("run-" + "a" * 26)


@pytest.fixture
def completed_run(resources, clock, layout, final_state, new_keys) -> RunId:
    """A run of two training rounds and an evaluation, as the engine leaves it behind."""
    spec = resolved_run_spec({"rounds": 2})
    blob = resources.blobs.put_bytes(final_state.to_bytes()).sha256
    now = clock.now()
    keys = {name: new_keys().signer for name in SITE_NAMES}

    def write(session) -> None:
        session.add_all(_site(name, signer, now) for name, signer in keys.items())
        session.flush()
        session.add(_run(spec, layout, final_state.digest(), blob, now))
        session.flush()
        session.add_all(_approval(name, signer, now) for name, signer in keys.items())
        for index, kind in enumerate(("train", "train", "evaluate")):
            report = {"train_loss": None, "eval_loss": 3.0 - index, "n_eval_records": 48}
            session.add(_round(index, kind, report, resources.signer, now))
            session.flush()
            session.add(_exchange(index, resources.signer, now))
        session.flush()
        facts = {"run_id": RUN, "state": "COMPLETED"}
        append_audit(session, AuditKind.RUN_STATE, actor="coordinator", facts=facts, now=now)

    resources.db.run_tx("test", write)
    return RUN


def _site(name: str, signer: EcdsaSigner, now) -> models.Site:
    return models.Site(
        site_id=name,
        state="ENROLLED",
        signing_spki=signer.spki_der,
        signing_key_sha256=spki_fingerprint(signer.spki_der),
        created_at=now,
        enrolled_at=now,
    )


def _run(spec, layout, state_sha256: str, blob: str, now) -> models.Run:
    return models.Run(
        run_id=RUN,
        name=spec.name,
        state=RunState.COMPLETED.value,
        run_spec_json=spec.canonical_bytes(),
        run_spec_sha256=spec.digest(),
        layout_json=layout.canonical_bytes(),
        layout_blob_sha256="0" * 64,
        initial_blob_sha256="0" * 64,
        public_state_version=2,
        public_state_sha256=state_sha256,
        public_state_blob_sha256=blob,
        created_by="user:lead",
        created_at=now,
        finished_at=now,
    )


def _approval(name: str, signer: EcdsaSigner, now) -> models.Approval:
    signed = sign_body(signer, "WR/sig/approval", b"{}")
    return models.Approval(
        run_id=RUN,
        site_id=name,
        decision="approved",
        statement_body=signed.body,
        statement_signature=signed.signature,
        at=now,
    )


def _round(index: int, kind: str, report, signer: EcdsaSigner, now) -> models.Round:
    signed = sign_body(signer, "SA1/sig/M0", b"manifest")
    return models.Round(
        run_id=RUN,
        round_index=index,
        round_attempt=0,
        kind=kind,
        state="COMMITTED",
        manifest_body=signed.body,
        manifest_signature=signed.signature,
        opened_at=now,
        deadline_at=now + timedelta(hours=1),
        finished_at=now + timedelta(seconds=20),
        report=report,
        state_version_after=min(index + 1, 2),
        state_sha256_after="c" * 64,
    )


def _exchange(index: int, signer: EcdsaSigner, now) -> models.Exchange:
    signed = sign_body(signer, "SA1/sig/M10", b"result %d" % index)
    return models.Exchange(
        run_id=RUN,
        round_index=index,
        round_attempt=0,
        exchange_index=0,
        exchange_attempt=0,
        state="SUMMED",
        invited=list(SITE_NAMES),
        arrived=[],
        u3=list(SITE_NAMES),
        opened_at=now,
        phase_deadline_at=now,
        finished_at=now,
        result_body=signed.body,
        result_signature=signed.signature,
        sum_blob_sha256="d" * 64,
        sum_bytes=128,
        transcript_root="e" * 64,
    )


def unpacked(resources, release_id: str, folder: Path) -> Path:
    archive = folder / "release.zip"
    archive.write_bytes(b"".join(open_release_archive(resources, release_id)))
    unpack_release(archive, folder / "release")
    return folder / "release"


@pytest.fixture
def published(resources, completed_run) -> str:
    release = create_release_candidate(resources, completed_run)
    approve_release(resources, release_id=release.release_id, meaning="fit for research", actor="user:lead")
    return release.release_id


def test_candidate_is_made_once_however_often_it_is_asked_for(resources, completed_run) -> None:
    first = create_release_candidate(resources, completed_run)
    again = create_release_candidate(resources, completed_run)
    assert first == again
    assert (first.release_id, first.state) == (release_id_for(RUN), "CANDIDATE")
    count = select(func.count()).select_from(models.Release)
    assert resources.db.read("test", lambda session: session.scalar(count)) == 1


def test_folder_holds_the_adapter_that_the_rounds_made(resources, published, tmp_path, layout) -> None:
    folder = unpacked(resources, published, tmp_path)
    tensors = load_safetensors((folder / "adapter_model.safetensors").read_bytes())
    expected = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(tensors["base_model.model.q.lora_A.weight"], expected[:8].reshape(2, 4))
    np.testing.assert_array_equal(tensors["base_model.model.q.lora_B.weight"], expected[8:].reshape(4, 2))
    assert json.loads((folder / "adapter_config.json").read_text()) == layout.peft_config


def test_manifest_names_the_lineage(resources, published, tmp_path) -> None:
    folder = unpacked(resources, published, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    spec = resolved_run_spec({"rounds": 2})
    assert manifest["run_spec_sha256"] == spec.digest()
    assert hashlib.sha256((folder / "evidence" / "run_spec.json").read_bytes()).hexdigest() == spec.digest()
    assert [one["round_index"] for one in manifest["rounds"]] == [0, 1, 2]
    assert {tuple(one["counted_sites"]) for one in manifest["rounds"]} == {tuple(sorted(SITE_NAMES))}
    assert manifest["evaluation"] == {"loss_before": 3.0, "loss_after": 1.0}
    checkpoint = json.loads((folder / "evidence" / "audit_checkpoint.json").read_text())
    assert (manifest["audit"]["size"], manifest["audit"]["head"]) == (checkpoint["size"], checkpoint["head"])
    rounds = json.loads((folder / "evidence" / "rounds.json").read_text())
    assert base64.b64decode(rounds[2]["result"]["body"]) == b"result 2"


def test_model_card_has_front_matter_and_says_what_is_not_promised(resources, published, tmp_path) -> None:
    text = (unpacked(resources, published, tmp_path) / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert "3.0000" in body
    assert "1.0000" in body
    assert "no differential-privacy guarantee" in body


def test_folder_verifies_with_the_tool_of_those_who_receive_it(resources, published, tmp_path) -> None:
    folder = unpacked(resources, published, tmp_path)
    key = spki_fingerprint(resources.release_signer.spki_der)
    verified = verify_release_folder(folder, expected_key_sha256=key)
    assert verified.manifest["release_id"] == published
    (folder / "README.md").write_text("better")
    with pytest.raises(EvidenceFaultError):
        verify_release_folder(folder, expected_key_sha256=key)


def test_archive_of_a_release_has_the_same_bytes_each_time(resources, published) -> None:
    first, again = (b"".join(open_release_archive(resources, published)) for _ in range(2))
    assert first == again
    assert zipfile.ZipFile(io.BytesIO(first)).testzip() is None


def test_release_goes_from_candidate_to_published_to_withdrawn_only(resources, completed_run) -> None:
    release_id = create_release_candidate(resources, completed_run).release_id
    with pytest.raises(StateConflictError):
        open_release_archive(resources, release_id)
    with pytest.raises(StateConflictError):
        withdraw_release(resources, release_id=release_id, reason="early", actor="user:lead")
    with pytest.raises(RequestInvalidError):
        approve_release(resources, release_id=release_id, meaning="  ", actor="user:lead")
    published = approve_release(resources, release_id=release_id, meaning="fit", actor="user:lead")
    assert (published.state, published.approved_by, published.approved_meaning) == ("PUBLISHED", "user:lead", "fit")
    with pytest.raises(StateConflictError):
        approve_release(resources, release_id=release_id, meaning="fit", actor="user:lead")
    withdrawn = withdraw_release(resources, release_id=release_id, reason="error found", actor="user:lead")
    assert withdrawn.state == "WITHDRAWN"
    with pytest.raises(StateConflictError):
        open_release_archive(resources, release_id)


def test_run_that_is_not_completed_is_not_released(resources, completed_run) -> None:
    def reopen(session) -> None:
        session.get(models.Run, RUN).state = RunState.PAUSED.value

    resources.db.run_tx("test", reopen)
    with pytest.raises(StateConflictError):
        create_release_candidate(resources, completed_run)
    with pytest.raises(NotFoundError):
        open_release_archive(resources, release_id_for(RUN))
