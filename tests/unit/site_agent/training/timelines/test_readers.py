"""What hospitals export, and every way in which a row of it can be wrong."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from site_agent.training.errors import (
    CodeWithoutDateError,
    DatasetMalformedError,
    DatasetMissingError,
    LibraryMissingError,
)
from site_agent.training.timelines.coded_rows import iter_coded_rows
from site_agent.training.timelines.fhir import iter_fhir
from site_agent.training.timelines.omop import iter_omop
from site_agent.training.timelines.rows import Row, RowFault, RowFaultKind, Sex, rows_or_raise

SECRET = "XYZZY-4711"


def day(text: str) -> int:
    return date.fromisoformat(text).toordinal()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def events(rows: list[Row | RowFault]) -> list[tuple[str, int, int, str, str]]:
    found = []
    for row in rows:
        assert isinstance(row, Row), row
        if row.event is not None:
            found.append((row.patient_id, row.event.day, row.event.second, row.event.source, row.event.code))
    return found


def faults(rows: list[Row | RowFault]) -> list[tuple[str, int, str | None, RowFaultKind]]:
    return [(row.file, row.place, row.field, row.kind) for row in rows if isinstance(row, RowFault)]


# --- rows ---


def test_rows_in_csv_are_read_with_their_times_and_persons(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.csv",
        "\ufeffTime,Patient_ID,code,source,sex,birth_date,extra\n"
        '2019-03-01T13:05:09Z,p1,"I10, essential",ICD,F,1950-02-28,\n'
        "\n"
        "2019-04,p1,E11,,,,x\n"
        "2018,p2,J45,,U,,\n",
    )
    rows = list(iter_coded_rows(path))
    assert events(rows) == [
        ("p1", day("2019-03-01"), 13 * 3600 + 5 * 60 + 9, "ICD", "I10, essential"),
        ("p1", day("2019-04-01"), 0, "", "E11"),
        ("p2", day("2018-01-01"), 0, "", "J45"),
    ]
    first, second, third = rows
    assert isinstance(first, Row)
    assert first.person is not None
    assert (first.person.sex, first.person.birth_day) == (Sex.FEMALE, day("1950-02-28"))
    assert isinstance(second, Row)
    assert second.person is None
    assert isinstance(third, Row)
    assert third.person is None


def test_rows_in_parquet_are_those_of_the_csv(tmp_path: Path) -> None:
    table = pa.table(
        {
            "patient_id": [7, 7, 8],
            "time": [date(2019, 3, 1), date(2019, 3, 2), None],
            "code": ["I10", "E11", "J45"],
            "other": [1.5, 2.5, 3.5],
        }
    )
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path)
    rows = list(iter_coded_rows(path))
    assert events(rows[:2]) == [("7", day("2019-03-01"), 0, "", "I10"), ("7", day("2019-03-02"), 0, "", "E11")]
    assert faults(rows[2:]) == [("rows.parquet", 3, "time", RowFaultKind.NO_DATE)]


def test_rows_each_fault_names_file_line_and_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.csv",
        "patient_id,time,code,sex,birth_date\n"
        "p1,2019-01-01,A,F,\n"
        ",2019-01-01,A,F,\n"
        "p1,,A,F,\n"
        f"p1,{SECRET},A,F,\n"
        "p1,2019-02-30,A,F,\n"
        "p1,2019-01-01T24:00,A,F,\n"
        "p1,2019-01-01,  ,F,\n"
        f"p1,2019-01-01,A,{SECRET},\n"
        "p1,2019-01-01,A,F,1950-13\n"
        f"p1,2019-01-01,{'A' * 201},F,\n"
        'p1,2019-01-01,"A\nB",F,\n'
        "p1,2019-01-01,A\n",
    )
    rows = list(iter_coded_rows(path))
    assert faults(rows) == [
        ("rows.csv", 3, "patient_id", RowFaultKind.BLANK),
        ("rows.csv", 4, "time", RowFaultKind.NO_DATE),
        ("rows.csv", 5, "time", RowFaultKind.NOT_A_DATE),
        ("rows.csv", 6, "time", RowFaultKind.NOT_A_DATE),
        ("rows.csv", 7, "time", RowFaultKind.NOT_A_DATE),
        ("rows.csv", 8, "code", RowFaultKind.BLANK),
        ("rows.csv", 9, "sex", RowFaultKind.NOT_A_SEX),
        ("rows.csv", 10, "birth_date", RowFaultKind.NOT_A_DATE),
        ("rows.csv", 11, "code", RowFaultKind.TOO_LONG),
        ("rows.csv", 13, "code", RowFaultKind.LINE_BREAK),
        ("rows.csv", 14, None, RowFaultKind.WRONG_WIDTH),
    ]
    assert SECRET not in repr(rows)


def test_rows_code_without_date_stops_with_a_type_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", f"patient_id,time,code\np1,2019-01-01,A\np1,,{SECRET}\n")
    with pytest.raises(CodeWithoutDateError) as caught:
        list(rows_or_raise(iter_coded_rows(path)))
    assert caught.value.facts == {
        "file": "rows.csv",
        "record": 3,
        "field": "time",
        "fault": "code-without-date",
    }
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("patient_id,code\n", {"file": "rows.csv", "record": 1, "field": "time"}),
        ("patient_id,time,code,TIME\n", {"file": "rows.csv", "record": 1, "field": "time"}),
        ("", {"file": "rows.csv", "record": 1}),
        (f'patient_id,time,code\n"{SECRET}" x,2019-01-01,A\n', {"file": "rows.csv", "record": 2}),
    ],
)
def test_rows_that_are_no_table_are_refused(tmp_path: Path, text: str, facts: dict[str, object]) -> None:
    path = write(tmp_path / "rows.csv", text)
    with pytest.raises(DatasetMalformedError) as caught:
        list(iter_coded_rows(path))
    assert caught.value.facts == facts
    assert SECRET not in str(caught.value)


def test_rows_that_are_not_there_or_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError):
        list(iter_coded_rows(tmp_path / "rows.csv"))
    with pytest.raises(DatasetMissingError):
        list(iter_coded_rows(tmp_path / "rows.parquet"))
    with pytest.raises(DatasetMalformedError):
        list(iter_coded_rows(write(tmp_path / "rows.parquet", "no table")))
    (tmp_path / "latin.csv").write_bytes(b"patient_id,time,code\np1,2019-01-01,\xe9\n")
    with pytest.raises(DatasetMalformedError):
        list(iter_coded_rows(tmp_path / "latin.csv"))


@pytest.mark.parametrize("fault", ["text", "time"])
def test_rows_in_parquet_that_python_cannot_hold_are_refused_by_their_column(tmp_path: Path, fault: str) -> None:
    code = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff" + SECRET.encode()]).buffers())
    time = pa.array([1], pa.timestamp("ns"))  # a part of a microsecond
    columns = {"patient_id": pa.array(["p1"]), "time": pa.array(["2019"]), "code": pa.array(["I10"])}
    columns |= {"code": code} if fault == "text" else {"time": time}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DatasetMalformedError) as caught:
        list(iter_coded_rows(tmp_path / "rows.parquet"))
    assert caught.value.facts == {"file": "rows.parquet", "field": "code" if fault == "text" else "time"}
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_rows_in_parquet_without_its_library_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Python itself does with a module that is not there.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LibraryMissingError) as caught:
        list(iter_coded_rows(write(tmp_path / "rows.parquet", "-")))
    assert caught.value.facts == {"extra": "parquet"}


# --- OMOP ---


def test_omop_tables_are_read_with_their_persons(tmp_path: Path) -> None:
    write(
        tmp_path / "condition_occurrence.csv",
        "condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime\n"
        "1,12,320128,2019-03-01,2019-03-01 13:05:00\n"
        "2,12,0,2019-03-02,\n"
        "3,13.0,201826,2019-03-03,\n",
    )
    write(
        tmp_path / "DRUG_EXPOSURE.csv",
        "DRUG_EXPOSURE_ID,PERSON_ID,DRUG_CONCEPT_ID,DRUG_EXPOSURE_START_DATE\n9,12,1503297,2019-03-01\n",
    )
    write(
        tmp_path / "procedure_occurrence.csv", "person_id,procedure_concept_id,procedure_date\n13,4163872,2019-02-01\n"
    )
    write(
        tmp_path / "person.csv",
        "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth\n12,8532,1950,2,\n13,0,,,\n",
    )
    rows = list(iter_omop(tmp_path))
    assert events(rows) == [
        ("12", day("2019-03-01"), 13 * 3600 + 5 * 60, "condition_occurrence", "320128"),
        ("13", day("2019-03-03"), 0, "condition_occurrence", "201826"),
        ("12", day("2019-03-01"), 0, "drug_exposure", "1503297"),
        ("13", day("2019-02-01"), 0, "procedure_occurrence", "4163872"),
    ]
    persons = [(row.patient_id, row.person) for row in rows if isinstance(row, Row) and row.person is not None]
    assert [(who, person.sex, person.birth_day) for who, person in persons] == [("12", Sex.FEMALE, day("1950-02-01"))]


def test_omop_faults_name_table_line_and_column(tmp_path: Path) -> None:
    write(
        tmp_path / "drug_exposure.csv",
        "person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_start_datetime\n"
        "12,abc,2019-03-01,\n"
        "12,1503297,,\n"
        "12,1503297,2019-03-01,2019-03-02 00:00:00\n",
    )
    persons = f"12,1950,2,30\n13,{10**30},1,1\n"
    write(tmp_path / "person.csv", "person_id,year_of_birth,month_of_birth,day_of_birth\n" + persons)
    assert faults(list(iter_omop(tmp_path))) == [
        ("drug_exposure.csv", 2, "drug_concept_id", RowFaultKind.NOT_A_NUMBER),
        ("drug_exposure.csv", 3, "drug_exposure_start_date", RowFaultKind.NO_DATE),
        ("drug_exposure.csv", 4, "drug_exposure_start_datetime", RowFaultKind.CONTRADICTS),
        ("person.csv", 2, "year_of_birth", RowFaultKind.NOT_A_DATE),
        ("person.csv", 3, "year_of_birth", RowFaultKind.NOT_A_DATE),
    ]


def test_omop_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    table = pa.table(
        {
            "person_id": pa.array([12, 13], pa.int64()),
            "condition_concept_id": pa.array([320128, 0], pa.int32()),
            "condition_start_date": [date(2019, 3, 1), date(2019, 3, 2)],
        }
    )
    parquet.write_table(table, tmp_path / "condition_occurrence.parquet")
    assert events(list(iter_omop(tmp_path))) == [
        ("12", day("2019-03-01"), 0, "condition_occurrence", "320128"),
    ]


def test_omop_folder_without_tables_or_with_two_of_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError):
        list(iter_omop(tmp_path))
    with pytest.raises(DatasetMissingError):
        list(iter_omop(tmp_path / "nowhere"))
    write(tmp_path / "drug_exposure.csv", "person_id,drug_concept_id,drug_exposure_start_date\n")
    write(tmp_path / "drug_exposure.parquet", "")
    with pytest.raises(DatasetMalformedError):
        list(iter_omop(tmp_path))


# --- FHIR ---

SNOMED, RXNORM = "http://snomed.info/sct", "http://www.nlm.nih.gov/research/umls/rxnorm"


def coding(system: str, code: str) -> dict[str, object]:
    return {"coding": [{"display": "no code"}, {"system": system, "code": code}, {"system": "x", "code": "y"}]}


def condition(**changes: object) -> dict[str, object]:
    whole: dict[str, object] = {
        "resourceType": "Condition",
        "subject": {"reference": "Patient/p1"},
        "code": coding(SNOMED, "38341003"),
        "onsetDateTime": "2019-03-01T13:05:00+02:00",
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


RESOURCES: list[dict[str, object]] = [
    {"resourceType": "Patient", "id": "p1", "gender": "male", "birthDate": "1950-02"},
    condition(),
    condition(onsetDateTime=None, onsetPeriod={"start": "2019-04"}, recordedDate="2020-01-01"),
    condition(onsetDateTime=None, recordedDate="2020-01-01"),
    condition(verificationStatus=coding("v", "refuted") | {"coding": [{"code": "refuted"}]}),
    {"resourceType": "Observation", "id": "o"},
    {
        "resourceType": "MedicationRequest",
        "status": "active",
        "subject": {"reference": "https://ehr.example/fhir/Patient/p1/_history/2"},
        "medicationCodeableConcept": coding(RXNORM, "197361"),
        "authoredOn": "2019-05-01",
    },
    {
        "resourceType": "Procedure",
        "status": "completed",
        "subject": {"reference": "Patient/p2"},
        "code": coding(SNOMED, "80146002"),
        "performedPeriod": {"start": "2019-06-01", "end": "2019-06-02"},
    },
    {"resourceType": "Procedure", "status": "not-done", "subject": {}, "code": {}},
]
EXPECTED = [
    ("p1", day("2019-03-01"), 13 * 3600 + 5 * 60, "Condition", f"{SNOMED}|38341003"),
    ("p1", day("2019-04-01"), 0, "Condition", f"{SNOMED}|38341003"),
    ("p1", day("2020-01-01"), 0, "Condition", f"{SNOMED}|38341003"),
    ("p1", day("2019-05-01"), 0, "MedicationRequest", f"{RXNORM}|197361"),
    ("p2", day("2019-06-01"), 0, "Procedure", f"{SNOMED}|80146002"),
]


def bundle(resources: list[dict[str, object]]) -> str:
    entries = [{"fullUrl": "https://ehr.example/x", "resource": resource} for resource in resources]
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})


def test_fhir_bundle_is_read(tmp_path: Path) -> None:
    rows = list(iter_fhir(write(tmp_path / "bundle.json", bundle(RESOURCES))))
    assert events(rows) == EXPECTED
    persons = [(row.patient_id, row.person) for row in rows if isinstance(row, Row) and row.person is not None]
    assert [(who, person.sex, person.birth_day) for who, person in persons] == [("p1", Sex.MALE, day("1950-02-01"))]


def test_fhir_lines_and_folders_are_read_as_the_bundle_is(tmp_path: Path) -> None:
    lines = "".join(json.dumps(resource) + "\n\n" for resource in RESOURCES)
    write(tmp_path / "a.ndjson", lines)
    assert events(list(iter_fhir(tmp_path / "a.ndjson"))) == EXPECTED
    write(tmp_path / "b.json", bundle(RESOURCES))
    write(tmp_path / "notes.txt", SECRET)
    assert events(list(iter_fhir(tmp_path))) == [*EXPECTED, *EXPECTED]


def test_fhir_urns_of_a_bundle_name_its_patients(tmp_path: Path) -> None:
    urn = "urn:uuid:6f1c2f3e-0000-4000-8000-000000000001"
    entries = [
        {"fullUrl": urn, "resource": {"resourceType": "Patient", "id": "p1", "gender": "female"}},
        {"fullUrl": "urn:uuid:other", "resource": condition(subject={"reference": urn})},
    ]
    path = write(tmp_path / "b.json", json.dumps({"resourceType": "Bundle", "entry": entries}))
    assert {row.patient_id for row in iter_fhir(path) if isinstance(row, Row)} == {urn}


def test_fhir_faults_name_file_place_and_element(tmp_path: Path) -> None:
    medication = {"resourceType": "MedicationRequest", "subject": {"reference": "Patient/p1"}, "authoredOn": "2019"}
    wrong: list[dict[str, object]] = [
        condition(onsetDateTime=None),
        condition(onsetDateTime=SECRET),
        condition(subject={"reference": f"Group/{SECRET}"}),
        condition(subject=None),
        condition(code={"text": SECRET}),
        medication | {"medicationReference": {"reference": f"Medication/{SECRET}"}},
        {"resourceType": "Patient", "id": "p1", "gender": SECRET},
        condition(verificationStatus={"coding": [{"code": [SECRET]}]}),
        medication | {"status": ["entered-in-error"]},
    ]
    path = tmp_path / "f.ndjson"
    path.write_bytes("".join(json.dumps(item) + "\n" for item in wrong).encode() + b"{\n[1]\n\xff\n")
    rows = list(iter_fhir(path))
    assert faults(rows) == [
        ("f.ndjson", 1, "onsetDateTime", RowFaultKind.NO_DATE),
        ("f.ndjson", 2, "onsetDateTime", RowFaultKind.NOT_A_DATE),
        ("f.ndjson", 3, "subject.reference", RowFaultKind.NOT_RESOLVED),
        ("f.ndjson", 4, "subject.reference", RowFaultKind.MISSING),
        ("f.ndjson", 5, "code", RowFaultKind.NO_CODE),
        ("f.ndjson", 6, "medicationReference", RowFaultKind.NOT_RESOLVED),
        ("f.ndjson", 7, "gender", RowFaultKind.NOT_A_SEX),
        ("f.ndjson", 8, "verificationStatus", RowFaultKind.NOT_TEXT),
        ("f.ndjson", 9, "status", RowFaultKind.NOT_TEXT),
        ("f.ndjson", 10, None, RowFaultKind.NOT_JSON),
        ("f.ndjson", 11, None, RowFaultKind.NOT_AN_OBJECT),
        ("f.ndjson", 12, None, RowFaultKind.NOT_UTF_8),
    ]
    assert SECRET not in repr(rows)
    with pytest.raises(CodeWithoutDateError):
        list(rows_or_raise(rows))


@pytest.mark.parametrize("text", ["{", "[]", '{"resourceType": "Bundle", "entry": 3}'])
def test_fhir_file_that_is_no_bundle_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetMalformedError) as caught:
        list(iter_fhir(write(tmp_path / "b.json", text)))
    assert caught.value.facts["file"] == "b.json"
    with pytest.raises(DatasetMissingError):
        list(iter_fhir(tmp_path / "nowhere"))


def test_fhir_entry_without_a_resource_is_a_fault_of_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "b.json", json.dumps({"resourceType": "Bundle", "entry": [{"resource": 1}]}))
    assert faults(list(iter_fhir(path))) == [("b.json", 1, "resource", RowFaultKind.NOT_AN_OBJECT)]
