from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from fl_protocol.ids import Sha256Hex
from site_agent.audit.store import AuditLog, read_log
from site_agent.datasets.declaration import DatasetDeclaration
from site_agent.datasets.errors import (
    DatasetExistsError,
    DatasetExpiredError,
    DatasetFileError,
    DatasetUnknownError,
    RecordFault,
)
from site_agent.datasets.inspector import DataDescription, Inspection
from site_agent.datasets.registry import (
    RegisteredDataset,
    check_dataset,
    find_dataset,
    list_datasets,
    register_dataset,
    withdraw_dataset,
)
from site_agent.db.tx import SiteDb
from site_agent.jobs.record_schema import schema_from_document

NOW = datetime.fromisoformat("2026-01-31T12:00:00Z")
DECLARATION = DatasetDeclaration(
    name="medical-qa", path=Path("/data/a.jsonl"), format="jsonl", purposes=("research",), description="questions"
)


@dataclass
class FakeInspector:
    found: Inspection = field(
        default_factory=lambda: Inspection(sha256=Sha256Hex("ab" * 32), n_records=12, n_patients=7)
    )
    error: Exception | None = None
    described: DataDescription | None = None

    def inspect(self, description: DataDescription) -> Inspection:
        self.described = description
        if self.error is not None:
            raise self.error
        return self.found


def register(
    db: SiteDb, audit: AuditLog, declaration: DatasetDeclaration = DECLARATION, inspector: FakeInspector | None = None
) -> RegisteredDataset:
    return register_dataset(db, audit, declaration, inspector=inspector or FakeInspector(), actor="user:jane", now=NOW)


def events(db: SiteDb) -> list[tuple[str, object]]:
    documents = [json.loads(row.body) for row in db.run_read("read", read_log).rows]
    return [(document["kind"], document["facts"].get("dataset")) for document in documents]


def test_register_dataset_keeps_what_was_found_and_records_it(site_db: SiteDb, audit_log: AuditLog) -> None:
    registered = register(site_db, audit_log)
    assert site_db.run_read("find", lambda session: find_dataset(session, "medical-qa")) == registered
    assert (registered.n_records, registered.n_patients, registered.sha256) == (12, 7, "ab" * 32)
    assert (registered.registered_by, registered.registered_at) == ("user:jane", NOW)
    (body,) = [json.loads(row.body) for row in site_db.run_read("read", read_log).rows]
    assert (body["kind"], body["actor"]) == ("dataset.registered", "user:jane")
    # The audit log leaves the hospital: no path is in it.
    assert "/data" not in json.dumps(body)


def test_register_dataset_again_unchanged_records_nothing_new(site_db: SiteDb, audit_log: AuditLog) -> None:
    assert register(site_db, audit_log) == register(site_db, audit_log)
    assert len(events(site_db)) == 1


@pytest.mark.parametrize(
    ("declaration", "sha256"),
    [
        (DECLARATION, "cd" * 32),
        (replace(DECLARATION, purposes=("billing",)), "ab" * 32),
        (replace(DECLARATION, path=Path("/data/b.jsonl")), "ab" * 32),
    ],
)
def test_register_dataset_name_in_use_for_other_content_is_refused(
    declaration: DatasetDeclaration, sha256: str, site_db: SiteDb, audit_log: AuditLog
) -> None:
    first = register(site_db, audit_log)
    inspector = FakeInspector(found=Inspection(sha256=Sha256Hex(sha256), n_records=12, n_patients=7))
    with pytest.raises(DatasetExistsError):
        register(site_db, audit_log, declaration, inspector)
    assert site_db.run_read("list", list_datasets) == (first,)


def test_register_dataset_with_a_faulty_file_records_nothing(site_db: SiteDb, audit_log: AuditLog) -> None:
    error = DatasetFileError("record 3 is malformed", failure_code="record-malformed", advice="", record=3)
    with pytest.raises(DatasetFileError):
        register(site_db, audit_log, inspector=FakeInspector(error=error))
    assert (site_db.run_read("list", list_datasets), events(site_db)) == ((), [])


def test_register_dataset_without_records_is_refused(site_db: SiteDb, audit_log: AuditLog) -> None:
    empty = FakeInspector(found=Inspection(sha256=Sha256Hex("ab" * 32), n_records=0, n_patients=0))
    with pytest.raises(DatasetFileError) as caught:
        register(site_db, audit_log, inspector=empty)
    assert caught.value.failure_code == "data-empty"


def test_check_dataset_tells_whether_the_digest_is_the_registered_one(site_db: SiteDb, audit_log: AuditLog) -> None:
    register(site_db, audit_log)
    assert check_dataset(site_db, audit_log, "medical-qa", inspector=FakeInspector(), actor="user:jane").is_unchanged
    changed = FakeInspector(found=Inspection(sha256=Sha256Hex("cd" * 32), n_records=13, n_patients=7))
    assert not check_dataset(site_db, audit_log, "medical-qa", inspector=changed, actor="user:jane").is_unchanged


def test_check_dataset_records_what_was_found_and_no_place_of_a_fault(site_db: SiteDb, audit_log: AuditLog) -> None:
    register(site_db, audit_log)
    check_dataset(site_db, audit_log, "medical-qa", inspector=FakeInspector(), actor="user:jane")
    fault = RecordFault(file="notes.jsonl", line=3, field="prompt", fault="missing")
    error = DatasetFileError("1 fault", failure_code="dataset-malformed", advice="", faults=(fault,), n_faults=1)
    with pytest.raises(DatasetFileError):
        check_dataset(site_db, audit_log, "medical-qa", inspector=FakeInspector(error=error), actor="user:jane")
    bodies = [json.loads(row.body) for row in site_db.run_read("read", read_log).rows]
    checked = [body["facts"] for body in bodies if body["kind"] == "dataset.checked"]
    assert [facts["outcome"] for facts in checked] == ["unchanged", "dataset-malformed"]
    assert "prompt" not in json.dumps(checked)
    assert "notes.jsonl" not in json.dumps(checked)


def test_register_dataset_keeps_ground_schema_and_last_day(site_db: SiteDb, audit_log: AuditLog) -> None:
    schema = schema_from_document({"id": {"type": "text"}, "person": {"type": "text", "max_length": 9}})
    declared = replace(
        DECLARATION,
        schema=schema,
        patient_field="person",
        legal_basis="gdpr-9-2-j",
        consent="broad-consent-2024",
        expires_on=date(2027, 6, 30),
    )
    inspector = FakeInspector()
    register(site_db, audit_log, declared, inspector)
    assert inspector.described is not None
    assert (inspector.described.schema, inspector.described.patient_field) == (schema, "person")
    found = site_db.run_read("find", lambda session: find_dataset(session, "medical-qa"))
    assert found is not None
    assert (found.schema, found.legal_basis, found.consent) == (schema, "gdpr-9-2-j", "broad-consent-2024")
    (body,) = [json.loads(row.body) for row in site_db.run_read("read", read_log).rows]
    facts = body["facts"]
    assert (facts["consent"], facts["legal_basis"], facts["expires_on"]) == (
        "broad-consent-2024",
        "gdpr-9-2-j",
        "2027-06-30",
    )
    # The last day itself is a day of use, at this machine's date.
    last = datetime.fromisoformat("2027-06-30T23:59:59").astimezone()
    assert not found.is_expired(last)
    assert found.is_expired(last + timedelta(seconds=1))
    # Declared with another ground it is another dataset.
    with pytest.raises(DatasetExistsError):
        register(site_db, audit_log, replace(declared, consent="other"))


def test_register_dataset_whose_last_day_is_over_is_refused(site_db: SiteDb, audit_log: AuditLog) -> None:
    with pytest.raises(DatasetExpiredError):
        register(site_db, audit_log, replace(DECLARATION, expires_on=date(2026, 1, 29)))
    assert site_db.run_read("list", list_datasets) == ()


def test_withdraw_dataset_takes_it_out_of_use_and_frees_the_name(site_db: SiteDb, audit_log: AuditLog) -> None:
    register(site_db, audit_log)
    withdrawn = withdraw_dataset(site_db, audit_log, "medical-qa", actor="user:jane", now=NOW)
    assert withdrawn.is_withdrawn
    assert site_db.run_read("find", lambda session: find_dataset(session, "medical-qa")) is None
    register(site_db, audit_log, replace(DECLARATION, purposes=("billing",)))
    everything = site_db.run_read("list", lambda session: list_datasets(session, with_withdrawn=True))
    assert [dataset.is_withdrawn for dataset in everything] == [True, False]
    assert [kind for kind, _ in events(site_db)] == ["dataset.registered", "dataset.withdrawn", "dataset.registered"]


def test_check_and_withdraw_of_an_unknown_dataset_say_so(site_db: SiteDb, audit_log: AuditLog) -> None:
    with pytest.raises(DatasetUnknownError):
        check_dataset(site_db, audit_log, "none", inspector=FakeInspector(), actor="user:jane")
    with pytest.raises(DatasetUnknownError):
        withdraw_dataset(site_db, audit_log, "none", actor="user:jane", now=NOW)
