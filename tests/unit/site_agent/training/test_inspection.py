"""Every record is looked at, one line at a time, and what is told of a fault is its place and its kind."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from site_agent.jobs.record_schema import schema_from_document
from site_agent.training.__main__ import main
from site_agent.training.errors import (
    DatasetEmptyError,
    DatasetMalformedError,
    DatasetMissingError,
)
from site_agent.training.formats import FORMATS
from site_agent.training.formats.prompt_jsonl import read_prompts
from site_agent.training.inspection import inspect_file
from site_agent.training.rows import jsonl
from tests.support.training_jobs import SECRET

pytestmark = pytest.mark.training

GOOD = {"id": "a", "prompt": "p", "completion": "c"}


def write(path: Path, *lines: object) -> Path:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def faults_of(path: Path, **declared: object) -> list[tuple[int, str | None, str]]:
    report = inspect_file(path, **declared)  # type: ignore[arg-type]
    return [(fault.line, fault.field, fault.fault) for fault in report.faults]


def test_file_without_faults_is_counted_with_its_digest_and_distinct_patients(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": str(k), "patient_id": who} for k, who in enumerate("xxy")]
    path = write(tmp_path / "d", *rows, {**GOOD, "id": "x"})
    report = inspect_file(path)
    # Two patients, and one record that names none and counts for itself, though its id is a patient's name.
    assert (report.n_records, report.n_patients, report.n_faults) == (4, 3, 0)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_fault_of_the_whole_file_is_told_by_line_and_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d",
        {**GOOD, "prompt": None},
        GOOD,
        b"{",
        b"",
        b"[1]",
        b"\xff",
        {"id": 1, "prompt": " ", "completion": "\ud800"},
        {**GOOD, "patient_id": 7},
    )
    assert faults_of(path) == [
        (1, "prompt", "missing"),
        (3, None, "not-json"),
        (4, None, "blank-line"),
        (5, None, "not-an-object"),
        (6, None, "not-utf-8"),
        (7, "id", "not-text"),
        (7, "prompt", "blank"),
        (7, "completion", "not-unicode"),
        (8, "patient_id", "not-text"),
    ]


def test_declared_schema_and_patient_field_are_held_to(tmp_path: Path) -> None:
    schema = schema_from_document(
        {
            "id": {"type": "text"},
            "prompt": {"type": "text", "max_length": 3},
            "completion": {"type": "text"},
            "person": {"type": "text"},
            "year": {"type": "integer", "at_least": 2000},
        }
    )
    good = {**GOOD, "person": "x", "year": 2001}
    path = write(
        tmp_path / "d",
        good,
        {**good, "id": "b"},
        {**good, "prompt": "long"},
        {**good, "year": 1999, "person": None},
        {**good, "name": "Jane"},
    )
    assert faults_of(path, schema=schema, patient_field="person") == [
        (3, "prompt", "too-long"),
        (4, "person", "missing"),
        (4, "year", "too-small"),
        (5, None, "undeclared-field"),
    ]
    assert inspect_file(write(tmp_path / "e", good, {**good, "id": "b"}), patient_field="person").n_patients == 1


def test_list_of_faults_is_bounded_and_their_number_is_not(tmp_path: Path) -> None:
    report = inspect_file(write(tmp_path / "d", *[{} for _ in range(100)]))
    assert (len(report.faults), report.n_faults) == (50, 300)


def test_line_that_is_too_long_is_a_fault_and_is_never_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_ROW_BYTES", 1 << 20)
    path = write(tmp_path / "d", GOOD, b"x" * (64 << 20), GOOD, b"y" * ((1 << 20) + 1), b"z" * (1 << 20))
    tracemalloc.start()
    try:
        report = inspect_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(fault.line, fault.fault) for fault in report.faults] == [
        (2, "line-too-long"),
        (4, "line-too-long"),
        (5, "not-json"),
    ]
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert peak < 16 << 20


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_file_without_records_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(DatasetEmptyError):
        inspect_file(tmp_path / "d")


def test_file_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError):
        inspect_file(tmp_path / "none")


def test_csv_is_looked_at_with_its_numbers_as_the_schema_declares_them(tmp_path: Path) -> None:
    declared = {
        "id": {"type": "text"},
        "text": {"type": "text"},
        "age": {"type": "integer", "at_most": 120},
        "dose": {"type": "number", "required": False},
        "alive": {"type": "boolean"},
    }
    path = tmp_path / "d"
    path.write_text("id,text,age,dose,alive\na,t,52,0.5,true\nb,t,old,,TRUE\nc,t,130,nan,yes\nd,,1,1e400,false\n")
    report = FORMATS["text-csv"].inspect(path, patient_field="patient_id", schema=schema_from_document(declared))
    found = [(fault.line, fault.field, fault.fault) for fault in report.faults]
    assert sorted(found, key=str) == [
        (3, "age", "not-a-whole-number"),
        (4, "age", "too-large"),
        (4, "alive", "not-true-or-false"),
        (4, "dose", "not-a-number"),
        (5, "dose", "not-a-number"),
        (5, "text", "missing"),
    ]


def test_parquet_is_looked_at_as_the_trainer_reads_it(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "t", "patient_id": "p"}, {"id": "b", "text": " ", "patient_id": "p"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d")
    report = FORMATS["text-parquet"].inspect(tmp_path / "d", patient_field="patient_id", schema=None)
    assert [(fault.line, fault.field, fault.fault) for fault in report.faults] == [(2, "text", "blank")]
    assert (report.n_records, report.n_patients) == (2, 1)


LINES = st.one_of(
    st.sampled_from([b"", b" ", b"{", b"[]", b"\xff", b"null", b'{"id": "a", "prompt": "p", "completion": "c"}\r']),
    st.dictionaries(
        st.sampled_from(["id", "prompt", "completion", "patient_id", "other"]),
        st.sampled_from(["x", "y", " ", "", None, 3, True, ["x"]]),
    ).map(lambda record: json.dumps(record).encode()),
    st.just(json.dumps({**GOOD, "patient_id": "x"}).encode()),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=5), ends=st.booleans(), has_mark=st.booleans())
def test_what_passes_inspection_is_what_the_trainer_reads(
    tmp_path: Path, lines: list[bytes], ends: bool, has_mark: bool
) -> None:
    path = tmp_path / "d"
    path.write_bytes((b"\xef\xbb\xbf" if has_mark else b"") + b"\n".join(lines) + (b"\n" if ends else b""))
    try:
        report = inspect_file(path)
    except DatasetEmptyError:
        with pytest.raises(DatasetEmptyError):
            read_prompts(path)
        return
    if report.n_faults:
        with pytest.raises(DatasetMalformedError) as caught:
            read_prompts(path)
        # The same first fault, at the same place.
        first = report.faults[0]
        assert (first.line, first.field) == (caught.value.facts["record"], caught.value.facts.get("field"))
        return
    dataset = read_prompts(path)
    assert (report.sha256, report.n_records, report.n_patients) == (
        dataset.sha256,
        len(dataset.records),
        dataset.n_patients,
    )


@pytest.mark.parametrize("form", [["--json"], []])
def test_program_tells_places_and_nothing_that_stands_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    path = write(
        tmp_path / "d",
        {"id": "a", "prompt": 5, "completion": SECRET, SECRET: SECRET},
        b'{"id": "' + SECRET.encode(),
        {**GOOD, "ward": SECRET, "patient_id": [SECRET]},
    )
    schema = tmp_path / "schema.json"
    fields = {name: {"type": "text"} for name in ("id", "prompt", "completion", "patient_id")}
    schema.write_text(json.dumps({**fields, "ward": {"type": "text", "required": False, "allowed": ["a"]}}))
    assert main(["inspect", "--data", str(path), "--schema", str(schema), *form]) == 1
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    for place in ("prompt", "not-json", "ward", "not-an-allowed-value", "undeclared-field"):
        assert place in said.out + said.err
    if form:
        error = json.loads(said.out)["error"]
        assert (error["code"], error["n_faults"], error["records"]) == ("dataset-malformed", 6, 3)
        assert error["faults"][0] | {"path": None, "message": None} == {
            "file": "d", "line": 1, "field": "prompt", "fault": "not-text", "path": None, "message": None
        }  # fmt: skip


def test_program_refuses_a_schema_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, schema = write(tmp_path / "d", GOOD), tmp_path / "schema.json"
    schema.write_text('{"id": {"type": "string"}}')
    assert main(["inspect", "--data", str(path), "--schema", str(schema), "--json"]) == 2
    assert "schema.id.type" in json.loads(capsys.readouterr().out)["error"]["message"]
