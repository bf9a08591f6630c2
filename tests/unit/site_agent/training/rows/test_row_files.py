"""One contract for every format: the same rows come out of JSONL, CSV and Parquet, in any order; nothing leaks."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from site_agent.training.errors import DatasetChangedError, DatasetMalformedError
from site_agent.training.rows import csv_table, jsonl, row
from site_agent.training.rows.csv_table import CsvFile
from site_agent.training.rows.jsonl import JsonlFile
from site_agent.training.rows.parquet import ParquetFile
from site_agent.training.rows.row import RowFault, RowFile

VALUES = [
    {"id": "a", "text": "one, two", "note": None},
    {"id": "b", "text": 'she said "three"\nand\r\nwent', "note": "x"},
    {"id": "ç", "text": "Ærø 漢字", "note": None},
    {"id": "d", "text": " spaces kept ", "note": "y"},
    {"id": "e", "text": "last", "note": None},
]


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in VALUES), encoding="utf-8")
    return path


def write_csv(path: Path) -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "text", "note"])
    writer.writeheader()
    writer.writerows(VALUES)
    path.write_bytes(out.getvalue().encode())
    return path


def write_parquet(path: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(VALUES), path, row_group_size=2)
    return path


Format = tuple[Callable[[Path], Path], Callable[[Path], RowFile]]
FORMATS: tuple[Format, ...] = ((write_jsonl, JsonlFile), (write_csv, CsvFile), (write_parquet, ParquetFile))
EVERY_FORMAT = pytest.mark.parametrize("form", FORMATS, ids=["jsonl", "csv", "parquet"])


@EVERY_FORMAT
def test_look_gives_every_row_in_order_and_hashes_every_byte(form: Format, tmp_path: Path) -> None:
    path = form[0](tmp_path / "d")
    digest = hashlib.sha256()
    rows = list(form[1](path).look(digest))
    assert [one.values for one in rows] == VALUES
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@EVERY_FORMAT
def test_rows_are_read_again_by_their_place_in_any_order(form: Format, tmp_path: Path) -> None:
    rows = form[1](form[0](tmp_path / "d"))
    places = [one.place for one in rows.look(hashlib.sha256())]
    for number in (4, 0, 3, 1, 1, 2):
        assert rows.read(places[number]) == VALUES[number]


@EVERY_FORMAT
def test_file_cut_short_after_the_look_is_noticed_and_quotes_nothing(form: Format, tmp_path: Path) -> None:
    path = form[0](tmp_path / "d")
    rows = form[1](path)
    places = [one.place for one in rows.look(hashlib.sha256())]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DatasetChangedError) as caught:
        rows.read(places[-1])
    assert "last" not in str(caught.value)
    assert caught.value.__cause__ is None


@EVERY_FORMAT
def test_empty_file_has_no_rows(form: Format, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"")
    assert list(form[1](tmp_path / "d").look(hashlib.sha256())) == []


@EVERY_FORMAT
def test_row_shows_nothing_of_its_values(form: Format, tmp_path: Path) -> None:
    rows = list(form[1](form[0](tmp_path / "d")).look(hashlib.sha256()))
    assert "two" not in repr(rows[0])


@pytest.mark.parametrize("make", [JsonlFile, CsvFile])
def test_byte_order_mark_is_skipped_and_hashed(make: Callable[[Path], RowFile], tmp_path: Path) -> None:
    body = b'{"id": "a"}\n' if make is JsonlFile else b"id\na\n"
    (tmp_path / "d").write_bytes(b"\xef\xbb\xbf" + body)
    digest = hashlib.sha256()
    rows = make(tmp_path / "d")
    (only,) = rows.look(digest)
    assert only.values == {"id": "a"}
    assert rows.read(only.place) == {"id": "a"}
    assert digest.hexdigest() == hashlib.sha256(b"\xef\xbb\xbf" + body).hexdigest()


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"id,text\na,b\nc\nd,e,f\ng,h\n", {3: RowFault.OTHER_COLUMNS, 4: RowFault.OTHER_COLUMNS}),
        (b"id,text\na,b\n\ng,h\n", {3: RowFault.BLANK}),
        (b'id,text\na,"never closed\ng,h\n', {2: RowFault.NOT_CSV}),
        (b'id,text\na,"closed"too early\n', {2: RowFault.NOT_CSV}),
        (b"id,text\na,b\nc,\xff\nd,e\n", {3: RowFault.NOT_UTF_8}),
    ],
)
def test_csv_fault_names_its_line(content: bytes, faults: dict[int, RowFault], tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(content)
    digest = hashlib.sha256()
    rows = list(CsvFile(tmp_path / "d").look(digest))
    assert {one.number: one.values for one in rows if isinstance(one.values, RowFault)} == faults
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("header", [b"id,,text\n", b"id,text,id\n", b'id,"te\n'])
def test_csv_header_that_is_none_is_refused_without_quoting_it(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(header)
    with pytest.raises(DatasetMalformedError) as caught:
        list(CsvFile(tmp_path / "d").look(hashlib.sha256()))
    assert caught.value.facts == {"record": 1}
    assert "text" not in str(caught.value)


def test_csv_row_numbers_are_lines_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b'id,text\na,"two\nlines"\nb,c\n')
    assert [one.number for one in CsvFile(tmp_path / "d").look(hashlib.sha256())] == [2, 4]


@pytest.mark.parametrize("module", [jsonl, csv_table])
def test_row_that_is_too_long_is_a_fault_and_still_hashed(
    module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    assert row.MAX_ROW_BYTES == 16 << 20
    long = "x" * 250
    lines = (
        f'{{"id": "a"}}\n{{"id": "{long}"}}\n{{"id": "b"}}\n' if module is jsonl else f'id\na\n"{long}\n{long}"\nb\n'
    ).encode()
    (tmp_path / "d").write_bytes(lines)
    digest = hashlib.sha256()
    rows = list((JsonlFile if module is jsonl else CsvFile)(tmp_path / "d").look(digest))
    assert [one.values for one in rows[:2]] == [{"id": "a"}, RowFault.TOO_LONG]
    # A line of JSONL ends where it ends; in CSV the end of a row that is too long is not looked for.
    assert [one.values for one in rows[2:]] == ([{"id": "b"}] if module is jsonl else [])
    assert digest.hexdigest() == hashlib.sha256(lines).hexdigest()


def test_parquet_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"PAR1 secret")
    with pytest.raises(DatasetMalformedError) as caught:
        list(ParquetFile(tmp_path / "d").look(hashlib.sha256()))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "table",
    [
        pa.table([pa.array(["a"]), pa.array(["secret"]), pa.array(["b"])], names=["id", "text", "text"]),
        pa.table({"id": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xffsecret"]).buffers())}),
        pa.table({"id": ["a"], "when": pa.array([1], pa.timestamp("ns"))}),
        pa.table({"id": ["a"], "when": pa.array([10**9], pa.date32())}),
    ],
    ids=["two columns of one name", "text that is none", "part of a microsecond", "year beyond 9999"],
)
def test_parquet_whose_rows_cannot_be_had_is_refused_without_quoting_it(table: pa.Table, tmp_path: Path) -> None:
    parquet.write_table(table, tmp_path / "d")
    with pytest.raises(DatasetMalformedError) as caught:
        list(ParquetFile(tmp_path / "d").look(hashlib.sha256()))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_parquet_dates_are_texts(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"id": "a", "day": date(2026, 1, 31)}])
    parquet.write_table(table, tmp_path / "d")
    (only,) = ParquetFile(tmp_path / "d").look(hashlib.sha256())
    assert only.values == {"id": "a", "day": "2026-01-31"}
