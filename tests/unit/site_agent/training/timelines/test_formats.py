"""The formats of timelines as a site registers them: records, digests, and what an inspection tells."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from site_agent.jobs.record_schema import FieldKind, FieldRule, RecordSchema
from site_agent.training.__main__ import main
from site_agent.training.errors import (
    CodeWithoutDateError,
    DatasetChangedError,
    DatasetEmptyError,
    DatasetFormatUnknownError,
    DatasetMalformedError,
    DatasetMissingError,
)
from site_agent.training.formats import FORMATS, timelines
from site_agent.training.timelines.timeline import Timeline

SECRET = "XYZZY-4711"
ROWS = FORMATS["timeline-rows"]
HEADER = "patient_id,time,code,sex\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_one_record_a_patient_with_the_file_s_digest(tmp_path: Path) -> None:
    text = HEADER + "p2,2019-01-02,B,F\np1,2019-01-01,A,\np2,2019-01-01,C,F\n"
    path = write(tmp_path / "rows.csv", text)
    dataset = ROWS.read(path, patient_field="patient_id")
    assert dataset.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert dataset.n_patients == 2
    assert [record.record_id for record in dataset.records] == ["p1", "p2"]
    second = dataset.records[1]
    assert isinstance(second, Timeline)
    assert second.codes == ("C", "B")
    assert second.person == second.patient_id == "p2"
    report = ROWS.inspect(path, patient_field="patient_id", schema=None)
    assert (report.sha256, report.n_records, report.n_patients, report.n_faults) == (dataset.sha256, 2, 2, 0)


def test_rows_name_the_patient_by_the_declared_field(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "MRN,time,code\n7,2019,A\n")
    assert ROWS.read(path, patient_field="MRN").records[0].patient_id == "7"


def test_inspection_lists_every_fault_by_place_and_no_value(tmp_path: Path) -> None:
    text = HEADER + f"p1,2019-01-01,A,F\np1,,{SECRET},F\np1,{SECRET},A,F\np1,2019-01-01,A,M\n"
    path = write(tmp_path / "rows.csv", text)
    report = ROWS.inspect(path, patient_field="patient_id", schema=None)
    assert [(fault.line, fault.field, fault.fault) for fault in report.faults] == [
        (3, "time", "code-without-date"),
        (4, "time", "not-a-date"),
        (5, "sex", "contradicts-an-earlier-row"),
    ]
    assert SECRET not in repr(report)
    with pytest.raises(CodeWithoutDateError):
        ROWS.read(path, patient_field="patient_id")


def test_contradiction_that_inspection_finds_stops_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", HEADER + "p1,2019-01-01,A,F\np1,2019-01-01,B,M\n")
    assert ROWS.inspect(path, patient_field="patient_id", schema=None).n_faults == 1
    with pytest.raises(DatasetMalformedError) as caught:
        ROWS.read(path, patient_field="patient_id")
    assert "timelines have the columns" in caught.value.advice


def test_empty_and_missing_datasets_are_refused_by_both_halves(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", HEADER)
    for half in (
        lambda where: ROWS.read(where, patient_field="patient_id"),
        lambda where: ROWS.inspect(where, patient_field="patient_id", schema=None),
    ):
        with pytest.raises(DatasetEmptyError):
            half(path)
        with pytest.raises(DatasetMissingError):
            half(tmp_path / "nowhere.csv")


def test_folder_where_a_file_is_due_is_refused_by_its_type(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DatasetMissingError):
        ROWS.read(tmp_path / "rows.csv", patient_field="patient_id")


def test_schema_cannot_be_declared_for_columns_that_are_given(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", HEADER + "p1,2019,A,\n")
    schema = RecordSchema(fields=(FieldRule(name="code", kind=FieldKind.TEXT),))
    with pytest.raises(DatasetFormatUnknownError):
        ROWS.inspect(path, patient_field="patient_id", schema=schema)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.csv", HEADER + "p1,2019,A,\n")
    group = timelines.group_by_patient

    def change_and_group(rows: object) -> object:
        write(path, HEADER + "p1,2019,A,\np1,2019,B,\n")
        return group(rows)

    monkeypatch.setattr(timelines, "group_by_patient", change_and_group)
    with pytest.raises(DatasetChangedError):
        ROWS.read(path, patient_field="patient_id")


def test_folder_s_digest_is_of_its_files_and_faults_name_the_file(tmp_path: Path) -> None:
    columns = "person_id,drug_concept_id,drug_exposure_start_date\n"
    drugs = write(tmp_path / "drug_exposure.csv", columns + "1,2,2019-01-01\n")
    write(tmp_path / "notes.txt", SECRET)
    omop = FORMATS["omop"]
    dataset = omop.read(tmp_path, patient_field="patient_id")
    listed = [["drug_exposure.csv", hashlib.sha256(drugs.read_bytes()).hexdigest()]]
    assert dataset.sha256 == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    write(drugs, columns + "1,2,\n")
    report = omop.inspect(tmp_path, patient_field="patient_id", schema=None)
    assert [(fault.file, fault.line, fault.field) for fault in report.faults] == [
        ("drug_exposure.csv", 2, "drug_exposure_start_date")
    ]


def test_fhir_bundles_are_records_too(tmp_path: Path) -> None:
    resource = {
        "resourceType": "Condition",
        "subject": {"reference": "Patient/p1"},
        "code": {"coding": [{"system": "s", "code": "c"}]},
        "recordedDate": "2019-01-01",
    }
    path = write(tmp_path / "b.json", json.dumps({"resourceType": "Bundle", "entry": [{"resource": resource}]}))
    (record,) = FORMATS["fhir"].read(path, patient_field="patient_id").records
    assert isinstance(record, Timeline)
    assert record.codes == ("s|c",)


def test_program_inspects_a_folder_and_prints_places_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = "person_id,drug_concept_id,drug_exposure_start_date\n"
    write(tmp_path / "drug_exposure.csv", columns + f"1,2,2019-01-01\n1,2,{SECRET}\n")
    arguments = ["inspect", "--data", str(tmp_path), "--format", "omop", "--json"]
    assert main(arguments) == 1
    told = capsys.readouterr().out
    assert json.loads(told)["error"]["faults"] == [
        {
            "file": "drug_exposure.csv",
            "line": 3,
            "field": "drug_exposure_start_date",
            "fault": "not-a-date",
            "path": "drug_exposure.csv, line 3, drug_exposure_start_date",
            "message": "not-a-date",
        }
    ]
    assert SECRET not in told
    write(tmp_path / "drug_exposure.csv", columns + "1,2,2019-01-01\n")
    assert main(arguments) == 0
    counted = json.loads(capsys.readouterr().out)
    assert (counted["records"], counted["patients"]) == (1, 1)
