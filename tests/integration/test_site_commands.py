"""The commands of an enrolled site on a folder with one run in hand, through the program's own entry."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import select

from fl_protocol.audit.events import event_from_bytes
from fl_protocol.clock import SystemClock
from fl_protocol.ids import RunId, Sha256Hex, SiteId
from fl_protocol.pki.certificates import LeafNames, Validity, issue_leaf, make_ca_certificate, new_serial
from fl_protocol.pki.identity import site_uri
from fl_protocol.pki.keys import generate_private_key, spki_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate
from fl_protocol.spec.context import ExchangeContext, RoundContext
from fl_protocol.spec.run_spec import bind_adapter, parse_run_spec, resolve_run_spec
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.testing.run_specs import pin_of, run_spec_document
from site_agent.approvals.run_records import RunInHand, record_pending_run, unsent_statements
from site_agent.audit.store import AuditLog
from site_agent.cli.app import run_program
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import register_dataset
from site_agent.db.models import AuditEventRow
from site_agent.db.tx import open_site_db
from site_agent.enrolment.enrol import ProxyChoice, write_first_files
from site_agent.enrolment.identity_file import SiteIdentity, save_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.folder import SiteFolder
from site_agent.state.payload_memory import Evaluation, MaskedCohort, RevealedExchange
from site_agent.state.round_book import RoundBook
from tests.support.tools import need_root

RUN_ID = RunId("run-" + "a" * 26)
LAYOUT = AdapterLayout(
    kind="lora",
    tensors=(
        TensorSpec(name="q_proj.lora_A.weight", shape=(8, 12)),
        TensorSpec(name="q_proj.lora_B.weight", shape=(4, 8)),
    ),
    peft_config={"r": 8},
)
POLICY = {
    "tasks": ["instruction-tuning"],
    "base_models": ["ab" * 32],
    "adapters": {"kinds": ["lora"], "max_rank": 8},
    "datasets": {"medical-qa": {"purposes": ["research"], "min_records": 100}},
    "privacy": {"without_dp": "allowed"},
    "egress": {"max_bytes_per_round": 1_000_000},
}


class FoundInspector:
    def inspect(self, description: DataDescription) -> Inspection:
        return Inspection(sha256=Sha256Hex("cd" * 32), n_records=120, n_patients=60)


def make_identity(keys: KeyStore) -> SiteIdentity:
    now = datetime.now(UTC).replace(microsecond=0)
    validity = Validity(not_before=now - timedelta(hours=1), not_after=now + timedelta(days=90))
    ca_key = generate_private_key()
    root = make_ca_certificate(ca_key, common_name="Wardround test", validity=validity, serial=new_serial())
    certificate = issue_leaf(
        ca_key,
        root,
        public_key=keys.load_tls_key().public_key(),
        common_name="st-mary",
        names=LeafNames(uris=(site_uri(SiteId("st-mary")),)),
        validity=validity,
        serial=new_serial(),
    )
    return SiteIdentity(
        site_id=SiteId("st-mary"),
        gateway_address="127.0.0.1:1",
        gateway_server_name="gateway.wardround.internal",
        signing_key_sha256=keys.signing_key_sha256(),
        coordinator_signing_spki=spki_from_private_key(generate_private_key()),
        certificate_pem=pem_from_certificate(certificate),
        root_pem=pem_from_certificate(root),
        root_sha256=certificate_fingerprint(root),
        enrolled_at=now,
    )


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    """An enrolled site with a dataset, a policy under which the run is permitted, and the run."""
    folder = SiteFolder(root=tmp_path)
    keys = KeyStore(folder)
    keys.ensure_keys()
    identity = make_identity(keys)
    save_identity(folder, identity)
    write_first_files(folder, identity, proxy=ProxyChoice())
    folder.policy_yaml.write_text(yaml.safe_dump(POLICY))
    clock = SystemClock()
    db, audit = open_site_db(folder.database), AuditLog(keys.load_signer(), clock, "site:st-mary")
    declaration = DatasetDeclaration(
        name="medical-qa", path=tmp_path / "a.jsonl", format="jsonl", purposes=("research",)
    )
    register_dataset(db, audit, declaration, inspector=FoundInspector(), actor="user:jane", now=clock.now())
    spec = parse_run_spec(run_spec_document())
    pins: dict[SiteId, str] = {SiteId(name): pin_of(name) for name in spec.cohort.names}
    pins[SiteId("st-mary")] = identity.signing_key_sha256
    spec = bind_adapter(resolve_run_spec(spec, pins), layout_sha256=LAYOUT.digest(), initial_sha256=pin_of("initial"))
    run = RunInHand(
        run_id=RUN_ID,
        name=spec.name,
        run_spec_sha256=spec.digest(),
        run_spec_json=spec.canonical_bytes(),
        layout_json=LAYOUT.canonical_bytes(),
        initial_state_sha256=pin_of("initial"),
    )
    record_pending_run(db, audit, run, now=clock.now())
    db.close()
    return folder


class Program:
    def __init__(self, folder: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, *arguments: str) -> tuple[int, dict[str, object]]:
        exit_code = run_program(["--state-dir", str(self.folder.root), *arguments, "--json"])
        return exit_code, json.loads(self.capsys.readouterr().out)

    def text(self, *arguments: str) -> tuple[int, str]:
        exit_code = run_program(["--state-dir", str(self.folder.root), *arguments])
        captured = self.capsys.readouterr()
        return exit_code, captured.out + captured.err


@pytest.fixture
def program(folder: SiteFolder, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(folder, capsys)


def list_peers(program: Program) -> None:
    for name in ("charite", "ucsf"):
        assert program("peers", "add", name, pin_of(name).upper())[0] == 0


def test_runs_pending_and_show_tell_what_the_policy_says(program: Program) -> None:
    exit_code, document = program("runs", "pending")
    items = document["items"]
    assert isinstance(items, list)
    assert exit_code == 0
    assert [(item["run_id"], item["denied_by"]) for item in items] == [(RUN_ID, None)]
    exit_code, page = program("runs", "show", RUN_ID)
    assert (exit_code, page["unlisted_peers"]) == (0, ["charite", "ucsf"])
    assert page["payload_bytes"] == 4 * 8 * (12 + 4) + 8 * 7
    exit_code, text = program.text("runs", "show", RUN_ID)
    assert exit_code == 0
    assert "NOT LISTED" in text
    assert pin_of("charite") in text
    # The rules by which it trains and folds, and what is in the sum.
    assert "local training" in text
    assert "the server applies" in " ".join(text.split())
    assert "the update, times its weight" in " ".join(text.split())


def test_runs_approve_with_listed_peers_leaves_a_statement_for_the_agent(program: Program) -> None:
    list_peers(program)
    exit_code, document = program("runs", "approve", RUN_ID)
    assert (exit_code, document["state"], document["purpose"]) == (0, "approved", "research")
    db = open_site_db(program.folder.database)
    (unsent,) = db.run_read("unsent", unsent_statements)
    db.close()
    assert json.loads(unsent.statement.body)["run_id"] == RUN_ID
    exit_code, document = program("runs", "approve", RUN_ID)
    assert exit_code == 1
    exit_code, document = program("runs", "decline", RUN_ID, "--reason", "the vote was withdrawn")
    assert (exit_code, document["state"]) == (0, "withdrawn")
    assert program("audit", "verify")[0] == 0


def test_runs_approve_with_unlisted_peers_is_refused_without_a_word(program: Program) -> None:
    assert program("runs", "approve", RUN_ID)[0] == 3
    assert program("runs", "approve", RUN_ID, "--accept-unlisted")[0] == 0


def test_runs_approve_against_the_policy_exits_with_three_and_names_the_rule(program: Program) -> None:
    program.folder.policy_yaml.write_text(yaml.safe_dump({**POLICY, "tasks": []}))
    exit_code, document = program("runs", "approve", RUN_ID, "--accept-unlisted")
    error = document["error"]
    assert isinstance(error, dict)
    assert (exit_code, error["code"], error["facts"]["rule"]) == (3, "policy-denied", "tasks")
    exit_code, document = program("policy", "explain", RUN_ID)
    assert (exit_code, document["is_permitted"]) == (3, False)


def test_runs_approve_with_a_faulty_policy_exits_with_two_and_lists_faults(program: Program) -> None:
    program.folder.policy_yaml.write_text("tasks: 3\nadapter: {}\n")
    exit_code, document = program("runs", "approve", RUN_ID)
    error = document["error"]
    assert isinstance(error, dict)
    assert exit_code == 2
    assert [fault.partition(":")[0] for fault in error["faults"]] == ["tasks", "adapter"]


def reveal_and_hear_no_more(folder: SiteFolder) -> None:
    """As the agent leaves it whose round was aborted after its shares had left."""
    place = RoundContext(run_id=RUN_ID, round_index=2, round_attempt=1)
    context = ExchangeContext(run_id=RUN_ID, round_index=2, round_attempt=1, exchange_index=0, exchange_attempt=0)
    survivors = (SiteId("charite"), SiteId("st-mary"), SiteId("ucsf"))
    evaluation = Evaluation(sha256="77" * 32, is_alone=False)
    clock = SystemClock()
    db = open_site_db(folder.database)
    book = RoundBook(db, AuditLog(KeyStore(folder).load_signer(), clock, "site:st-mary"), clock)
    book.join(place, manifest_sha256="11" * 32, public_state_sha256="22" * 32)
    cohort = MaskedCohort(context=context, sites=frozenset(survivors), threshold=3)
    book.claim_mask(cohort, payload_sha256="33" * 32, evaluation=evaluation)
    revealed = RevealedExchange(context=context, h_survivors=b"h" * 32)
    book.ensure_revealed(revealed, survivors=survivors, evaluation=evaluation)
    book.record_state(place, "abandoned", outcome="run-cancelled")
    db.close()


def test_runs_release_needs_an_explicit_word_shows_what_it_may_cost_and_is_recorded(program: Program) -> None:
    reveal_and_hear_no_more(program.folder)
    exit_code, text = program.text("runs", "release", RUN_ID)
    assert exit_code == 2
    assert "Round 2, attempt 1: this site revealed shares for a sum over charite, st-mary, ucsf" in text
    assert "can subtract them" in text
    assert "--yes" in text
    exit_code, document = program("runs", "release", RUN_ID, "--yes")
    assert exit_code == 0
    survivors = ["charite", "st-mary", "ucsf"]
    assert document["items"] == [{"round_index": 2, "round_attempt": 1, "survivors": survivors}]
    db = open_site_db(program.folder.database)
    bodies = db.run_read("audit", lambda session: [row.body for row in session.scalars(select(AuditEventRow))])
    db.close()
    (released,) = [event for event in map(event_from_bytes, bodies) if event.event.kind == "reveal.released"]
    assert released.event.actor == f"user:{document['released_by']}"
    assert program("audit", "verify")[0] == 0
    exit_code, document = program("runs", "release", RUN_ID, "--yes")
    assert (exit_code, document["error"]["code"]) == (1, "reveal-not-releasable")  # type: ignore[index]


def test_runs_release_of_a_run_nobody_knows_exits_with_four(program: Program) -> None:
    assert program("runs", "release", "run-" + "z" * 26, "--yes")[0] == 4


def test_policy_explain_permitted_run_says_what_comes_next(program: Program) -> None:
    exit_code, text = program.text("policy", "explain", RUN_ID)
    assert exit_code == 0
    assert f"runs approve {RUN_ID}" in text


def test_peers_add_and_remove_change_site_yaml_and_are_recorded(program: Program) -> None:
    comments = program.folder.site_yaml.read_text().count("#")
    list_peers(program)
    assert program("peers", "list")[1] == {
        "items": [{"name": name, "sha256": pin_of(name)} for name in ("charite", "ucsf")]
    }
    assert program("peers", "remove", "charite")[0] == 0
    assert program("peers", "remove", "charite")[0] == 4
    assert program("peers", "add", "charite", "abc")[0] == 2
    assert program("peers", "add", "st-mary", "ab" * 32)[0] == 2
    assert program.folder.site_yaml.read_text().count("#") == comments
    exit_code, document = program("audit", "verify")
    assert (exit_code, document["size"]) == (0, 5)


@pytest.mark.system
def test_peers_of_a_mounted_site_yaml_are_refused_before_they_are_recorded(folder: SiteFolder, tmp_path: Path) -> None:
    need_root()
    kept = tmp_path / "kept.yaml"
    kept.write_text(folder.site_yaml.read_text())
    mount = f"mount --bind {kept} {folder.site_yaml} && mount -o remount,ro,bind {folder.site_yaml}"
    words = [sys.executable, "-m", "site_agent", "--state-dir", str(folder.root)]
    words += ["peers", "add", "ucsf", pin_of("ucsf")]
    before = n_events(folder.database)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "change 'peers' where the file is kept" in done.stderr
    assert n_events(folder.database) == before
    assert kept.read_text() == folder.site_yaml.read_text()


def n_events(database: Path) -> int:
    """How many events the site's log holds."""
    db = open_site_db(database)
    try:
        return db.run_read("count", lambda session: len(session.scalars(select(AuditEventRow)).all()))
    finally:
        db.close()


def test_status_tells_what_waits_and_what_the_agent_says(program: Program) -> None:
    said = {"state": "training", "connected": True, "updated_at": datetime.now(UTC).isoformat(), "step": 3, "steps": 10}
    program.folder.status_json.write_text(json.dumps(said))
    program("runs", "pause")
    exit_code, document = program("status")
    agent = document["agent"]
    assert isinstance(agent, dict)
    assert (exit_code, document["is_paused"], document["n_pending"]) == (0, True, 1)
    assert (agent["is_running"], agent["step"]) == (True, 3)
    assert "runs pending" in program.text("status")[1]


def test_status_tells_why_the_last_job_failed_where_and_what_to_do(program: Program) -> None:
    failure = {
        "run_id": RUN_ID,
        "round_index": 2,
        "code": "out-of-memory",
        "message": "the device has not enough memory for the run's batches",
        "advice": "Give more memory.",
        "facts": {"batch_size": 16, "fitting_batch_size": 4},
    }
    said = {"state": "idle", "connected": True, "updated_at": datetime.now(UTC).isoformat()}
    program.folder.status_json.write_text(json.dumps({**said, "training_failure": failure}))
    line = (
        f"FAILED    training in run {RUN_ID}, round 2 (out-of-memory): the device has not enough memory for the run's "
        "batches [batch_size=16, fitting_batch_size=4] Give more memory."
    )
    assert line in program.text("status")[1]
    program.folder.status_json.write_text(json.dumps({**said, "training_failure": None}))
    assert "FAILED" not in program.text("status")[1]


@pytest.mark.parametrize("arguments", [("privacy", "ledger"), ("nonsense",), ("runs", "show")])
def test_command_that_is_not_there_exits_with_two_and_one_document(
    arguments: tuple[str, ...], program: Program
) -> None:
    exit_code, document = program(*arguments)
    assert exit_code == 2
    assert "error" in document


def test_commands_in_a_folder_that_never_enrolled_exit_with_two(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = Program(SiteFolder(root=tmp_path_factory.mktemp("empty")), capsys)
    for command in (("status",), ("runs", "pending"), ("datasets", "list"), ("start",)):
        exit_code, document = empty(*command)
        assert exit_code == 2, command
        assert "error" in document


def test_keys_that_others_can_read_stop_every_command(program: Program) -> None:
    program.folder.signing_key.chmod(0o644)
    exit_code, document = program("runs", "approve", RUN_ID)
    error = document["error"]
    assert isinstance(error, dict)
    assert (exit_code, error["code"]) == (1, "key-permissions")
    assert "chmod 600" in error["advice"]
