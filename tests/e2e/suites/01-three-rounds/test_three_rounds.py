"""Real processes from an empty folder: enrol, three rounds, release, load with peft, verify; then alter and verify."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tests.e2e.support import recording_site
from tests.e2e.support.private_figures import (
    FLOATS_THAT_ARE_NO_FIGURES,
    Recording,
    float_fields,
    found_figures,
    read_recording,
)
from tests.e2e.support.tiny_study import MODEL_NAME, RECORD_COUNTS, write_tiny_study
from tests.support.tiny_model import make_tiny_model
from wardround.client.connection import Connection, read_token
from wardround.client.rest import RestClient
from wardround.demo.federation import DemoSurroundings, run_demo
from wardround.demo.live_table import PlainProgress
from wardround.demo.processes import Supervisor, wait_for_file
from wardround.demo.summary import DemoReport
from wardround.demo.workspace import Checkout, DemoOptions, Programs, child_environment
from wardround.errors import DemoFailedError, EvidenceFaultError
from wardround.evidence.audit_export import verify_export
from wardround.evidence.release_folder import verify_release_folder

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(600)]

SITES = ("st-mary", "charite", "ucsf")
CHECKOUT = Checkout(root=Path(__file__).resolve().parents[4])
ENVIRONMENT = child_environment(os.environ, CHECKOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A study and its base model, and nothing started."""

    study: Path
    models_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A demonstration that came to its end, with everything that it left."""

    report: DemoReport
    document: dict[str, object]
    work: Path
    base_model: Path
    recording: Recording


def surroundings(programs: Programs, **more: str) -> DemoSurroundings:
    from rich.console import Console

    return DemoSurroundings(
        checkout=CHECKOUT,
        programs=programs,
        environment={**os.environ, **more},
        progress=PlainProgress(Console(file=sys.stderr, width=160)),
        now=datetime.now(UTC),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("three-rounds")
    write_tiny_study(root / "study")
    make_tiny_model(root / "models" / MODEL_NAME)
    return Prepared(study=root / "study", models_dir=root / "models")


@pytest.fixture(scope="module")
def finished(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    options = DemoOptions(study=str(prepared.study), work_dir=root / "work", models_dir=prepared.models_dir)
    programs = Programs(site=(sys.executable, str(Path(recording_site.__file__))))
    report = run_demo(options, surroundings(programs, WIRE_RECORD_DIR=str(root / "wire")))
    return Finished(
        report=report,
        document=report.to_document(),
        work=root / "work",
        base_model=prepared.models_dir / MODEL_NAME,
        recording=read_recording(root / "wire"),
    )


@pytest.fixture
def altered(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the work folder, for a test that changes it."""
    return Path(shutil.copytree(finished.work, tmp_path / "work"))


def call(*words: str, environment: dict[str, str] | None = None) -> tuple[int, dict[str, object]]:
    """A program's exit code and its one document."""
    outcome = subprocess.run(
        [sys.executable, "-m", *words, "--json"],
        env=environment or ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return outcome.returncode, json.loads(outcome.stdout)


def alter_one_row(database: Path, table: str, needle: bytes) -> int:
    """Change one byte in the last event that holds ``needle``; returns its row. Triggers that forbid it are dropped."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        for (trigger,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,)
        ).fetchall():
            connection.execute(f'DROP TRIGGER "{trigger}"')
        rows = connection.execute(f"SELECT seq, body FROM {table} ORDER BY seq DESC").fetchall()
        seq, body = next((seq, bytes(body)) for seq, body in rows if needle in bytes(body))
        forged = body.replace(needle, needle.swapcase(), 1)
        connection.execute(f"UPDATE {table} SET body = ? WHERE seq = ?", (forged, seq))
    return int(seq)


def processes_that_name(folder: Path) -> list[str]:
    """Command lines of running processes in which the folder stands."""
    found: list[str] = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def test_every_round_commits_with_every_site_and_the_loss_falls(finished: Finished) -> None:
    report = finished.report
    assert [(line.index, line.kind, line.state) for line in report.rounds] == [
        (0, "train", "COMMITTED"),
        (1, "train", "COMMITTED"),
        (2, "train", "COMMITTED"),
        (3, "evaluate", "COMMITTED"),
    ]
    assert all(set(line.counted_sites) == set(SITES) for line in report.rounds)
    assert all(line.bytes_up > 0 and line.bytes_down > 0 for line in report.rounds)
    assert report.eval_loss_before == report.rounds[0].eval_loss
    assert report.eval_loss_after == report.rounds[3].eval_loss
    assert report.eval_loss_after is not None
    assert report.eval_loss_before is not None
    assert report.eval_loss_after < 0.9 * report.eval_loss_before


def test_document_of_the_demo_has_the_promised_keys(finished: Finished) -> None:
    document = finished.document
    assert document["sites"] == list(SITES)
    assert document["secure_aggregation"] is True
    assert document["audit_verified"] is True
    promised = {"index", "state", "counted_sites", "seconds", "train_loss", "eval_loss", "bytes_up", "bytes_down"}
    assert isinstance(document["rounds"], list)
    assert all(promised <= set(line) for line in document["rounds"])


def test_sums_count_the_records_of_all_sites(finished: Finished) -> None:
    metrics = finished.report.metrics["rounds"]
    assert isinstance(metrics, list)
    assert metrics[0]["n_records"] == sum(RECORD_COUNTS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft calls a deprecated alias
def test_release_verifies_and_loads_with_peft_and_changes_the_model(finished: Finished) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    verify_release_folder(finished.report.release_dir)
    base = AutoModelForCausalLM.from_pretrained(str(finished.base_model))
    tokenizer = AutoTokenizer.from_pretrained(str(finished.base_model))
    tokens = tokenizer("It is a sign of organ 1.", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(input_ids=tokens, labels=tokens).loss.item()
        model = PeftModel.from_pretrained(base, str(finished.report.release_dir))
        after = model(input_ids=tokens, labels=tokens).loss.item()
    assert after < before


def test_release_with_one_changed_byte_is_refused_by_name(altered: Path) -> None:
    weights = altered / "release" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, document = call("wardround", "releases", "verify", str(altered / "release"))
    assert code == 1
    assert "adapter_model.safetensors" in str(document["error"])


@pytest.mark.parametrize("site", SITES)
def test_audit_log_of_a_site_verifies_as_it_was_left(finished: Finished, site: str) -> None:
    code, document = call("site_agent", "--state-dir", str(finished.work / "sites" / site), "audit", "verify")
    assert (code, document["is_verified"]) == (0, True)


def test_audit_log_of_a_site_with_an_altered_row_is_refused_and_the_row_named(altered: Path) -> None:
    folder = altered / "sites" / "charite"
    row = alter_one_row(folder / "site.db", "audit_events", b"run-")
    code, document = call("site_agent", "--state-dir", str(folder), "audit", "verify")
    assert code == 1
    assert (document["is_verified"], document["row"]) == (False, row)


@pytest.fixture
def served(altered: Path) -> Iterator[tuple[RestClient, int]]:
    """The coordinator of the copied folder, running again after one row of its log was altered."""
    folder = altered / "coordinator"
    row = alter_one_row(folder / "coordinator.db", "audit_events", b"st-mary")
    (folder / "serve.json").unlink(missing_ok=True)
    logs = altered / "logs-again"
    logs.mkdir()
    with Supervisor(logs, ENVIRONMENT) as supervisor:
        supervisor.start(
            "coordinator", (sys.executable, "-m", "coordinator", "serve", "--config", str(folder / "coordinator.yaml"))
        )
        wait_for_file(folder / "serve.json", supervisor, timeout_s=60, what="the coordinator")
        url = f"https://{json.loads((folder / 'serve.json').read_text())['rest']}"
        token = read_token(folder / "admin.token")
        with RestClient(Connection(url=url, root_file=folder / "root.pem", token=token)) as client:
            yield client, row


def test_audit_log_of_the_coordinator_with_an_altered_row_is_refused_and_the_row_named(
    served: tuple[RestClient, int],
) -> None:
    client, row = served
    lines = client.text("/api/v1/audit/export").splitlines()
    with pytest.raises(EvidenceFaultError) as caught:
        verify_export(lines)
    assert caught.value.facts["row"] == row


def test_no_message_of_the_run_holds_a_loss_count_or_norm_of_one_site(finished: Finished) -> None:
    recording = finished.recording
    methods = {message.method.rpartition("/")[2] for message in recording.messages if message.direction == "sent"}
    assert {"Enrol", "SubmitApproval", "PollAssignment", "ReportProgress", "AdvertiseKeys", "ShareKeys"} <= methods
    assert {"UploadBlob", "ConfirmSurvivors", "RevealShares", "AcknowledgeResult"} <= methods
    # Three sites, three training rounds and an evaluation: what could have leaked is known.
    assert sum(name.endswith("/eval_loss") for name in recording.figures) >= 9
    assert {recording.figures[name] for name in recording.figures if name.endswith("/records")} == set(RECORD_COUNTS)
    for recorded in recording.messages:
        assert found_figures(recorded.message, recording.figures) == [], (recorded.method, recorded.direction)


def test_no_message_of_the_run_has_a_floating_point_field_but_durations(finished: Finished) -> None:
    for recorded in finished.recording.messages:
        assert float_fields(recorded.message) <= FLOATS_THAT_ARE_NO_FIGURES, recorded.method


def test_site_s_own_figures_differ_from_site_to_site(finished: Finished) -> None:
    figures = finished.recording.figures
    norms = [value for name, value in figures.items() if name.endswith("/0.0/adapter_update_norm")]
    assert len(norms) == 3
    assert len(set(norms)) == 3


def test_nothing_that_the_demo_started_still_runs(finished: Finished) -> None:
    assert processes_that_name(finished.work) == []


def test_demo_whose_sites_cannot_enrol_says_which_process_failed_and_keeps_its_folder(
    prepared: Prepared, tmp_path: Path
) -> None:
    broken = Programs(site=(sys.executable, "-c", "raise SystemExit('the disk is full')"))
    options = DemoOptions(study=str(prepared.study), work_dir=tmp_path / "work", models_dir=prepared.models_dir)
    with pytest.raises(DemoFailedError, match=r"site-(st-mary|charite|ucsf)-setup failed") as caught:
        run_demo(options, surroundings(broken))
    assert "the disk is full" in caught.value.log_tail
    assert caught.value.facts["work_dir"] == str(tmp_path / "work")
    assert (tmp_path / "work" / "logs").is_dir()
    assert processes_that_name(tmp_path / "work") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(prepared: Prepared, tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    words = ["demo", "--study", str(prepared.study), "--models-dir", str(prepared.models_dir), "--work-dir", str(work)]
    # A shell ignores SIGINT for what it starts in the background, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    demo = subprocess.Popen(
        [sys.executable, "-m", "wardround", *words],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 90
        while not (work / "coordinator" / "serve.json").exists():
            assert demo.poll() is None, "the demo ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert b"Traceback" not in errors
    assert processes_that_name(work) == []


def test_demo_of_an_unknown_study_lists_what_there_is() -> None:
    code, document = call("wardround", "demo", "--study", "no-such-study")
    assert code == 4
    assert "phenotype-definitions" in str(document["error"])
