"""Somebody with access to the disks changes the audit logs of a finished run: each change is found, and the row named.

The databases are those of real processes. What a party can repair, since it holds the key, is repaired: a coordinator
that rewrites its log, hashes, links, checkpoints and all, passes alone and fails beside what its sites wrote down.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_protocol.audit.chain import LogTip, append_event
from fl_protocol.audit.checkpoint import Checkpoint, sign_checkpoint
from fl_protocol.audit.events import event_from_bytes
from fl_protocol.pki.keys import private_key_from_pem
from fl_protocol.signing.keys import EcdsaSigner
from tests.e2e.support.audit_exports import call_site, export_coordinator, export_sites, verify
from tests.e2e.support.federation import COORDINATOR, Federation
from tests.e2e.support.template import SMALL, Template

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

Tamper = Callable[[sqlite3.Connection, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A federation whose run is over and whose processes are stopped."""

    federation: Federation
    coordinator_export: Path
    site_exports: list[Path]


@pytest.fixture(scope="module")
def finished(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    federation = Federation(template, tmp_path_factory.mktemp("tampered") / "work", sites=SMALL.sites)
    try:
        federation.start()
        run_id = federation.start_run(SMALL)
        federation.wait_for_end(run_id)
        export = export_coordinator(federation, "audit-coordinator")
        federation.processes.stop(COORDINATOR)
        for site in federation.site_names:
            federation.processes.stop(site)
        yield Finished(federation=federation, coordinator_export=export, site_exports=export_sites(federation))
    finally:
        federation.end()


def opened(database: Path) -> sqlite3.Connection:
    """The database of a party that is down, without the triggers that forbid changes."""
    connection = sqlite3.connect(database)
    for (trigger,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_events'"
    ).fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')
    return connection


def alter(connection: sqlite3.Connection, seq: int) -> None:
    (body,) = connection.execute("SELECT body FROM audit_events WHERE seq = ?", (seq,)).fetchone()
    forged = bytes(body).replace(b'"facts":{', b'"facts":{"added":1,', 1).replace(b",}", b"}")
    assert forged != bytes(body)
    connection.execute("UPDATE audit_events SET body = ? WHERE seq = ?", (forged, seq))


def drop(connection: sqlite3.Connection, seq: int) -> None:
    connection.execute("DELETE FROM audit_events WHERE seq = ?", (seq,))


def exchange(connection: sqlite3.Connection, seq: int) -> None:
    for old, new in ((seq, -1), (seq + 1, seq), (-1, seq + 1)):
        connection.execute("UPDATE audit_events SET seq = ? WHERE seq = ?", (new, old))


def cut(connection: sqlite3.Connection, seq: int) -> None:
    connection.execute("DELETE FROM audit_events WHERE seq >= ?", (seq,))


TAMPERINGS = pytest.mark.parametrize(
    ("tamper", "reason"), [(alter, "altered"), (drop, "dropped"), (exchange, "reordered"), (cut, "truncated")]
)


@pytest.fixture
def as_before(finished: Finished) -> Iterator[Federation]:
    """The federation, whose databases are put back afterwards."""
    federation = finished.federation
    folders = [federation.coordinator_dir, *(federation.site_dir(site) for site in federation.site_names)]
    files = [file for folder in folders for file in folder.glob("*.db*")]
    kept = {file: file.read_bytes() for file in files}
    yield federation
    for folder in folders:
        for file in folder.glob("*.db*"):
            file.unlink()
    for file, content in kept.items():
        file.write_bytes(content)


def test_logs_as_they_were_left_verify_alone_and_together(finished: Finished) -> None:
    code, document = verify(finished.coordinator_export, finished.site_exports)
    assert (code, document["verified"]) == (0, True), document
    compared = document["compared"]
    assert isinstance(compared, list)
    # Two training rounds and an evaluation: every site was shown three heads, and stated three of its own.
    assert [(row["n_shown"], row["n_lost"], row["n_told"]) for row in compared] == [(3, 0, 3)] * 3


@TAMPERINGS
def test_site_s_database_that_was_changed_is_found_and_the_row_named(
    as_before: Federation, tamper: Tamper, reason: str
) -> None:
    with opened(as_before.site_dir("ucsf") / "site.db") as connection:
        tamper(connection, 9)
    connection.close()
    code, document = call_site(as_before, "ucsf", "audit", "verify")
    assert (code, document["is_verified"], document["row"], document["reason"]) == (1, False, 9, reason)
    # Nor does it leave the house as evidence.
    code, _ = call_site(as_before, "ucsf", "audit", "export", str(as_before.folder / "never.jsonl"))
    assert code == 1
    assert not (as_before.folder / "never.jsonl").exists()


@TAMPERINGS
def test_coordinator_s_database_that_was_changed_is_found_in_its_export(
    as_before: Federation, tamper: Tamper, reason: str
) -> None:
    with opened(as_before.coordinator_dir / "coordinator.db") as connection:
        tamper(connection, 9)
    connection.close()
    as_before.start_coordinator()
    export = export_coordinator(as_before, f"tampered-{reason}")
    as_before.processes.stop(COORDINATOR)
    code, document = verify(export)
    assert code == 1
    error = document["error"]
    assert isinstance(error, dict)
    # Whatever a coordinator records behind a cut end leaves a gap.
    expected = {"truncated", "dropped"} if reason == "truncated" else {reason}
    assert error["facts"]["row"] == 9
    assert error["facts"]["reason"] in expected


def rewritten(export: Path, signer: EcdsaSigner, *, row: int) -> Iterator[str]:
    """The whole log anew from one row on, by whoever holds the key: no hash, link or signature is wrong."""
    lines = [json.loads(line) for line in export.read_text().splitlines()]
    yield json.dumps(lines[0])
    tip = LogTip()
    for line in lines[1:]:
        if "body" not in line:
            continue
        event = event_from_bytes(base64.b64decode(line["body"])).event
        if tip.size >= row:
            object.__setattr__(event, "actor", "user:somebody-else")
        tip, forged = append_event(tip, event)
        yield json.dumps({"body": base64.b64encode(forged.body).decode(), "seq": forged.seq})
    head = tip.head()
    point = Checkpoint(origin=lines[0]["origin"], size=head.size, head=head.root, at=event.at)
    signed = sign_checkpoint(signer, point)
    body, signature = (base64.b64encode(part).decode() for part in (signed.body, signed.signature))
    yield json.dumps({"checkpoint": {"body": body, "signature": signature}})


def test_log_that_its_own_coordinator_rewrote_is_found_beside_what_a_site_was_shown(finished: Finished) -> None:
    federation = finished.federation
    signer = coordinator_key(federation)
    shown = [
        event_from_bytes(base64.b64decode(line["body"])).event.facts["log_size"]
        for line in map(json.loads, finished.site_exports[0].read_text().splitlines())
        if "body" in line and b'"kind":"checkpoint.witnessed"' in base64.b64decode(line["body"])
    ]
    forged = federation.folder / "forged.jsonl"
    forged.write_text("\n".join(rewritten(finished.coordinator_export, signer, row=int(str(shown[0])) - 1)) + "\n")
    code, document = verify(forged)
    # Alone it is perfect: it was signed by the right key.
    assert (code, document["verified"]) == (0, True)
    code, document = verify(forged, finished.site_exports[:1])
    error = document["error"]
    assert isinstance(error, dict)
    assert code == 1
    assert (error["facts"]["kind"], error["facts"]["size"]) == ("two-histories", shown[0])
    assert error["facts"]["witness"] == f"site:{federation.site_names[0]}"


def coordinator_key(federation: Federation) -> EcdsaSigner:
    """The coordinator's signing key, as it lies in its folder."""
    return EcdsaSigner(private_key_from_pem((federation.coordinator_dir / "keys" / "signing.key.pem").read_bytes()))
