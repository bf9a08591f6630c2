from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.errors import TableBusyError, TableUnreadableError
from benchmarks.studies.table_file import Table, only_writer, read_table, write_table
from tests.unit.benchmarks.studies.cells_for_tests import cell
from wardround.studies.description import Arm


def filled() -> Table:
    table = Table(study="s", common={"c": {"rounds": 3}}, machines=[{"cpu": "x"}], chosen={"steps": 6})
    table.put(cell(Arm.FEDERATED, {"a": 1.0, "b": 2.0}))
    table.put(cell(Arm.LOCAL, {"a": 1.5, "b": 2.5}, site="a"))
    return table


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_table(tmp_path / "deep" / "t.json", filled())
    read = read_table(tmp_path / "deep" / "t.json", study="s")
    assert read == filled()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.json"]


def test_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_table(tmp_path / "t.json", study="s") == Table(study="s")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"rows": []}', '{"format": 2, "study": "s"}', '{"format": 1, "study": "s", "cells": []}'],
)
def test_file_that_is_no_table_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(TableUnreadableError) as caught:
        read_table(tmp_path / "t.json", study="s")
    assert (caught.value.exit_code, caught.value.code) == (2, "study-table-unreadable")
    assert (tmp_path / "t.json").read_text() == content


def test_table_of_another_study_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.json", filled())
    with pytest.raises(TableUnreadableError, match="another study"):
        read_table(tmp_path / "t.json", study="other")


@pytest.mark.parametrize(
    ("key", "value"),
    [("phase", "lunch"), ("arm", "leg"), ("seed", "seven"), ("evaluated", []), ("evaluated", {"a": {}})],
)
def test_cell_that_is_damaged_is_refused(tmp_path: Path, key: str, value: object) -> None:
    document = filled().to_document()
    assert isinstance(document["cells"], list)
    document["cells"][0][key] = value
    (tmp_path / "t.json").write_text(json.dumps(document))
    with pytest.raises(TableUnreadableError):
        read_table(tmp_path / "t.json", study="s")


def test_write_that_fails_leaves_the_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    write_table(path, filled())
    before = path.read_bytes()
    table = filled()
    table.put(cell(Arm.POOLED, {"a": 1.0}))

    def fail(_descriptor: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("benchmarks.studies.table_file.os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_table(path, table)
    assert path.read_bytes() == before


def test_cells_of_other_settings_are_dropped_and_the_rest_kept() -> None:
    table = filled()
    table.put(cell(Arm.POOLED, {"a": 1.0}, common_sha256="old"))
    table.common["old"] = {}
    assert table.keep_only("c") == 1
    assert table == filled()


def test_cell_takes_the_place_of_the_older_one() -> None:
    table = filled()
    table.put(cell(Arm.FEDERATED, {"a": 9.0}, learning_rate=0.25))
    assert len(table.cells) == 2


def test_table_has_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path / "t.json"):
        with pytest.raises(TableBusyError), only_writer(tmp_path / "t.json"):
            pass
        with only_writer(tmp_path / "other.json"):
            pass
    with only_writer(tmp_path / "t.json"):
        pass
