# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors
from sqlalchemy import func, select

from coordinator.db import models
from coordinator.errors import NotFoundError
from coordinator.rounds.run_machine import RunState
from coordinator.services.refusals import RequestInvalidError, StateConflictError
from coordinator.services.release_adapter import (
    create_release_candidate,
    open_candidate_archive,
    open_release_archive,
    release_id_for,
    withdraw_release,
)
from fl_protocol.signing.keys import spki_fingerprint
from fl_protocol.testing.run_specs import SITE_NAMES
from tests.support.released_run import FIRST, LAYOUT, CompletedRuns, state_of
from wardround.errors import EvidenceFaultError
from wardround.evidence.release_folder import verify_release_folder


@pytest.fixture
def runs(resources) -> CompletedRuns:
    return CompletedRuns(resources=resources)


@pytest.fixture
def published(runs) -> str:
    runs.complete()
    return runs.publish()


def test_candidate_is_made_once_however_often_it_is_asked_for(resources, runs) -> None:
    run_id = runs.complete()
    first = create_release_candidate(resources, run_id)
    again = create_release_candidate(resources, run_id)
    assert first == again
    assert (first.release_id, first.state) == (release_id_for(FIRST), "CANDIDATE")
    count = select(func.count()).select_from(models.Release)
    assert resources.db.read("test", lambda session: session.scalar(count)) == 1


def test_folder_holds_the_adapter_that_the_rounds_made(runs, published, tmp_path) -> None:
    folder = runs.unpacked(published, tmp_path)
    tensors = load_safetensors((folder / "adapter_model.safetensors").read_bytes())
    expected = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(tensors["base_model.model.q.lora_A.weight"], expected[:8].reshape(2, 4))
    np.testing.assert_array_equal(tensors["base_model.model.q.lora_B.weight"], expected[8:].reshape(4, 2))
    assert json.loads((folder / "adapter_config.json").read_text()) == LAYOUT.peft_config


def test_manifest_names_the_lineage(resources, runs, published, tmp_path) -> None:
    folder = runs.unpacked(published, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    held = resources.db.read("test", lambda session: session.get_one(models.Run, FIRST).run_spec_json)
    assert manifest["run_spec_sha256"] == hashlib.sha256(held).hexdigest()
    assert (folder / "evidence" / "run_spec.json").read_bytes() == held
    assert [one["round_index"] for one in manifest["rounds"]] == [0, 1, 2]
    assert {tuple(one["counted_sites"]) for one in manifest["rounds"]} == {tuple(sorted(SITE_NAMES))}
    assert manifest["evaluation"] == {"loss_before": 3.0, "loss_after": 1.0}
    # A site that does not tell its dataset's digest is not asked for it.
    assert manifest["datasets"] == [
        {"site_id": name, "dataset": "medical-qa", "sha256": None} for name in sorted(SITE_NAMES)
    ]
    assert (manifest["parents"], manifest["continues_as"]) == ([], state_of(0, 0.0).digest())
    checkpoint = json.loads((folder / "evidence" / "audit_checkpoint.json").read_text())
    assert (manifest["audit"]["size"], manifest["audit"]["head"]) == (checkpoint["size"], checkpoint["head"])
    rounds = json.loads((folder / "evidence" / "rounds.json").read_text())
    assert base64.b64decode(rounds[2]["result"]["body"]) == b"result 2"
    ledger = json.loads((folder / "evidence" / "privacy_ledger.json").read_text())
    assert (ledger["mechanism"], ledger["epsilon"], ledger["entries"]) == ("none", None, [])
    assert "no guarantee" in ledger["note"]


def test_folder_verifies_with_the_tool_of_those_who_receive_it(resources, runs, published, tmp_path) -> None:
    folder = runs.unpacked(published, tmp_path)
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


def test_release_goes_from_candidate_to_published_to_withdrawn_only(resources, runs) -> None:
    runs.complete()
    release_id = runs.candidate().release_id
    for state in ("CANDIDATE", "APPROVED"):
        with pytest.raises(StateConflictError, match=state):
            open_release_archive(resources, release_id)
        with pytest.raises(StateConflictError, match=state):
            withdraw_release(resources, release_id=release_id, reason="early", actor="user:lead")
        assert b"".join(open_candidate_archive(resources, release_id))
        after = runs.sign(release_id, "lead" if state == "CANDIDATE" else "privacy")
    assert after.state == "PUBLISHED"
    with pytest.raises(StateConflictError, match="PUBLISHED"):
        open_candidate_archive(resources, release_id)
    with pytest.raises(RequestInvalidError):
        withdraw_release(resources, release_id=release_id, reason=" ", actor="user:lead")
    withdrawn = withdraw_release(resources, release_id=release_id, reason="error found", actor="user:lead")
    assert withdrawn.state == "WITHDRAWN"
    with pytest.raises(StateConflictError, match="WITHDRAWN"):
        open_release_archive(resources, release_id)


def test_run_that_is_not_completed_is_not_released(resources, runs) -> None:
    run_id = runs.complete()

    def reopen(session) -> None:
        session.get(models.Run, FIRST).state = RunState.PAUSED.value

    resources.db.run_tx("test", reopen)
    with pytest.raises(StateConflictError):
        create_release_candidate(resources, run_id)
    with pytest.raises(NotFoundError):
        open_release_archive(resources, release_id_for(FIRST))
