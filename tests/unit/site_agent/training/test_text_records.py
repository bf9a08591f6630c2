from __future__ import annotations

import csv
import hashlib
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from site_agent.training.data import split_dataset
from site_agent.training.errors import (
    DatasetChangedError,
    DatasetEmptyError,
    DatasetMalformedError,
    DatasetMissingError,
    LibraryMissingError,
)
from site_agent.training.formats import FORMATS
from site_agent.training.text_records import PlainTextRecord, PreferenceRecord, PromptRecord

ROWS = [
    {"id": "r1", "prompt": "q1", "completion": "a1", "patient_id": "p1"},
    {"id": "r2", "prompt": "q2", "completion": "a2", "patient_id": None},
    {"id": "r3", "prompt": "q3", "completion": "a3", "patient_id": "p1"},
    {"id": "r4", "prompt": "q4", "completion": "a4", "patient_id": "r2"},
]


def expected_hash(person: str) -> int:
    return int.from_bytes(hashlib.sha256(f"wardround/split/{person}".encode()).digest()[:8], "big")


def write(path: Path, data_format: str, rows: list[dict[str, str | None]]) -> Path:
    if data_format == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif data_format == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet"])
def test_index_gives_the_records_of_every_format(tmp_path: Path, data_format: str) -> None:
    path = write(tmp_path / "d", data_format, ROWS)
    dataset = FORMATS[data_format].read(path, patient_field="patient_id")
    records = dataset.records
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(records) == 4
    assert records[2] == PromptRecord(record_id="r3", patient_id="p1", prompt="q3", completion="a3")
    assert records[-1].record_id == "r4"
    assert [one.record_id for one in records[1:3]] == ["r2", "r3"]
    assert dataset.split_hashes.tolist() == [expected_hash(person) for person in ("p1", "r2", "p1", "r2")]
    # Patient p1 once; the record r2 without a patient and a patient called r2 are two.
    assert dataset.n_patients == 3


@pytest.mark.parametrize("container", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("shape", "row", "expected"),
    [
        (
            "preferences-",
            {"id": "a", "prompt": "q", "chosen": "c", "rejected": "r"},
            PreferenceRecord(record_id="a", patient_id=None, prompt="q", chosen="c", rejected="r"),
        ),
        ("text-", {"id": "a", "text": "t"}, PlainTextRecord(record_id="a", patient_id=None, text="t")),
    ],
)
def test_shape_makes_its_record(
    tmp_path: Path, container: str, shape: str, row: dict[str, str | None], expected: object
) -> None:
    path = write(tmp_path / "d", container, [row])
    records = FORMATS[shape + container].read(path, patient_field="patient_id").records
    assert records[0] == expected
    assert repr(records[0]) == f"{type(expected).__name__}(...)"


@pytest.mark.parametrize(
    ("data_format", "number"),
    [("jsonl", 2), ("csv", 3), ("parquet", 2)],
)
@pytest.mark.parametrize(
    ("change", "field"),
    [({"chosen": None}, "chosen"), ({"rejected": "  "}, "rejected"), ({"patient_id": " "}, "patient_id")],
)
def test_fault_names_row_and_field_and_quotes_nothing(
    tmp_path: Path, data_format: str, number: int, change: dict[str, str | None], field: str
) -> None:
    good: dict[str, str | None] = {"id": "a", "prompt": "secret", "chosen": "c", "rejected": "r", "patient_id": "p"}
    path = write(tmp_path / "d", data_format, [good, good | change, good])
    with pytest.raises(DatasetMalformedError) as caught:
        FORMATS[f"preferences-{data_format}"].read(path, patient_field="patient_id")
    assert caught.value.facts == {"file": "d", "record": number, "field": field}
    assert "secret" not in str(caught.value)


def test_wrong_schema_for_the_task_is_told_by_its_first_missing_field(tmp_path: Path) -> None:
    path = write(tmp_path / "d", "jsonl", ROWS)
    with pytest.raises(DatasetMalformedError) as caught:
        FORMATS["preferences-jsonl"].read(path, patient_field="patient_id")
    assert caught.value.facts == {"file": "d", "record": 1, "field": "chosen"}


@pytest.mark.parametrize("data_format", ["jsonl", "csv"])
def test_file_without_records_is_empty(tmp_path: Path, data_format: str) -> None:
    (tmp_path / "d").write_bytes(b"" if data_format == "jsonl" else b"id,text\n")
    with pytest.raises(DatasetEmptyError):
        FORMATS[f"text-{data_format}"].read(tmp_path / "d", patient_field="patient_id")


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet"])
def test_missing_file_is_told(tmp_path: Path, data_format: str) -> None:
    with pytest.raises(DatasetMissingError):
        FORMATS[data_format].read(tmp_path / "d", patient_field="patient_id")


def test_parquet_without_its_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d", "parquet", ROWS)
    # What Python itself does with a module that is not there.
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LibraryMissingError) as caught:
        FORMATS["parquet"].read(path, patient_field="patient_id")
    assert caught.value.facts == {"extra": "parquet"}


def test_another_persons_record_in_a_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text('{"id": "a", "text": "t"}\n{"id": "b", "text": "t"}\n')
    records = FORMATS["text-jsonl"].read(path, patient_field="patient_id").records
    path.write_text('{"id": "b", "text": "t"}\n{"id": "a", "text": "t"}\n')
    with pytest.raises(DatasetChangedError):
        records[0]


def test_file_that_vanished_is_told_when_a_record_is_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "d", "jsonl", ROWS)
    records = FORMATS["jsonl"].read(path, patient_field="patient_id").records
    path.unlink()
    with pytest.raises(DatasetMissingError):
        records[0]


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("max_records", [1, 7, 1000])
def test_split_of_records_in_a_file_is_that_of_sorting_all(tmp_path: Path, fraction: float, max_records: int) -> None:
    # Several records a person, so that equal hashes are cut through by max_records.
    names = [f"r{(k * 37) % 200:03d}" for k in range(200)]
    rows: list[dict[str, str | None]] = [
        {"id": name, "text": "t", "patient_id": f"p{k % 40}"} for k, name in enumerate(names)
    ]
    dataset = FORMATS["text-jsonl"].read(write(tmp_path / "d", "jsonl", rows), patient_field="patient_id")
    split = split_dataset(dataset, holdout_fraction=fraction, max_records=max_records)
    hashes = [expected_hash(f"p{k % 40}") for k in range(200)]
    below = sorted((hashed, name) for hashed, name in zip(hashes, names, strict=True) if hashed < fraction * 2**64)
    assert [one.record_id for one in split.held_out] == [name for _, name in below[:max_records]]
    kept = [name for hashed, name in zip(hashes, names, strict=True) if hashed >= fraction * 2**64]
    assert [one.record_id for one in split.training] == kept


@pytest.mark.parametrize("data_format", ["jsonl", "csv", "parquet"])
def test_memory_stays_bounded_on_a_file_larger_than_the_bound(tmp_path: Path, data_format: str) -> None:
    n_records, bound = 6500, 8 << 20
    text = "word " * 800
    rows: list[dict[str, str | None]] = [{"id": f"r{k}", "text": f"{k} {text}"} for k in range(n_records)]
    path = tmp_path / "d"
    if data_format == "parquet":
        parquet.write_table(
            pa.Table.from_pylist(rows), path, row_group_size=100, compression=None, use_dictionary=False
        )
    else:
        write(path, data_format, rows)
    del rows
    assert path.stat().st_size > 3 * bound
    # Arrow's memory is not Python's: a pool that nothing was written with knows its own peak.
    usual, pool = pa.default_memory_pool(), pa.system_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        dataset = FORMATS[f"text-{data_format}"].read(path, patient_field="patient_id")
        split = split_dataset(dataset, holdout_fraction=0.1, max_records=64)
        drawn = sum(len(record.text) for part in (split.held_out, split.training[::40]) for record in part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert (pool.max_memory() or 0) + peak < bound
    assert drawn > 100 * 4000
