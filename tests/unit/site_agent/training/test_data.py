from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from site_agent.datasets import declaration
from site_agent.training.data import Dataset, split_dataset
from site_agent.training.errors import (
    DatasetEmptyError,
    DatasetFormatUnknownError,
    DatasetMalformedError,
    DatasetMissingError,
)
from site_agent.training.formats import FORMATS, format_called
from site_agent.training.formats.prompt_jsonl import PromptRecord, read_prompts

GOOD = '{"id": "a", "prompt": "p", "completion": "c"}'


def record(record_id: str, patient_id: str | None = None) -> PromptRecord:
    return PromptRecord(record_id=record_id, prompt="p", completion="c", patient_id=patient_id)


def dataset_of(*records: PromptRecord) -> Dataset:
    return Dataset(records=records, sha256="")


def expected_hash(key: str) -> int:
    return int(hashlib.sha256(f"wardround/split/{key}".encode()).hexdigest()[:16], 16)


def test_dataset_is_read_with_its_digest_and_patients(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"id": str(k), "prompt": "p", "completion": "c", "patient_id": pid} for k, pid in enumerate("xxy")]
    content = "".join(json.dumps(row) + "\n" for row in rows) + GOOD
    path.write_text(content)
    dataset = read_prompts(path)
    assert [one.record_id for one in dataset.records] == ["0", "1", "2", "a"]
    assert dataset.n_patients == 3
    assert dataset.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_patient_and_record_of_the_same_name_are_two_persons() -> None:
    assert dataset_of(record("x"), record("y", patient_id="x")).n_patients == 2


def test_dataset_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert len(read_prompts(tmp_path / "d").records) == 1


def test_dataset_missing_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissingError):
        read_prompts(tmp_path / "none.jsonl")


def test_dataset_of_another_format_is_a_typed_error() -> None:
    with pytest.raises(DatasetFormatUnknownError):
        format_called("xlsx")


def test_dataset_empty_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    with pytest.raises(DatasetEmptyError):
        read_prompts(tmp_path / "d")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", None),
        ("", None),
        ("[]", None),
        ("[" * 100_000, None),
        ('{"id": "a", "prompt": "secret"}', "completion"),
        ('{"id": 3, "prompt": "secret", "completion": "c"}', "id"),
        ('{"id": "a", "prompt": "  ", "completion": "c"}', "prompt"),
        ('{"id": "a", "prompt": "secret", "completion": ["c"]}', "completion"),
        ('{"id": "a", "prompt": "secret", "completion": "c", "patient_id": 7}', "patient_id"),
        ('{"id": "a", "prompt": "\\ud800 secret", "completion": "c"}', "prompt"),
    ],
)
def test_dataset_malformed_names_the_record_and_the_field_and_quotes_nothing(
    tmp_path: Path, line: str, field: str | None
) -> None:
    (tmp_path / "d").write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(DatasetMalformedError) as caught:
        read_prompts(tmp_path / "d")
    assert caught.value.facts["record"] == 3
    assert caught.value.facts.get("field") == field
    assert "secret" not in str(caught.value)
    # Nor may a log that renders the chain of errors quote it.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_dataset_that_is_not_utf8_names_the_record(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(GOOD.encode() + b"\n" + b'{"id": "\xff"}\n')
    with pytest.raises(DatasetMalformedError) as caught:
        read_prompts(tmp_path / "d")
    assert caught.value.facts["record"] == 2


def test_split_holds_out_by_the_hash_of_the_record() -> None:
    records = [record(f"r{k}") for k in range(400)]
    split = split_dataset(dataset_of(*records), holdout_fraction=0.25, max_records=1000)
    expected = sorted((expected_hash(f"r{k}"), f"r{k}") for k in range(400) if expected_hash(f"r{k}") < 2**62)
    assert [one.record_id for one in split.held_out] == [name for _, name in expected]
    assert {one.record_id for one in split.training} == {f"r{k}" for k in range(400)} - {n for _, n in expected}


def test_split_keeps_a_patient_on_one_side() -> None:
    records = [record(f"r{k}", patient_id=f"p{k % 20}") for k in range(200)]
    split = split_dataset(dataset_of(*records), holdout_fraction=0.3, max_records=1000)
    trained = {one.patient_id for one in split.training}
    held_out = {one.patient_id for one in split.held_out}
    assert trained
    assert held_out
    assert not trained & held_out


def test_split_uses_the_first_held_out_records_and_trains_on_none_of_the_rest() -> None:
    records = [record(f"r{k}") for k in range(400)]
    every = split_dataset(dataset_of(*records), holdout_fraction=0.25, max_records=1000)
    some = split_dataset(dataset_of(*records), holdout_fraction=0.25, max_records=5)
    assert list(some.held_out) == list(every.held_out[:5])
    assert list(some.training) == list(every.training)


def test_split_of_nothing_held_out_trains_on_all() -> None:
    split = split_dataset(dataset_of(record("a"), record("b")), holdout_fraction=0.0, max_records=5)
    assert (len(split.training), len(split.held_out)) == (2, 0)


def test_record_shows_nothing_of_itself() -> None:
    assert "p" not in repr(record("a")).removeprefix("PromptRecord").strip("(.)")


def test_agent_admits_exactly_the_formats_that_the_trainer_reads() -> None:
    assert set(declaration.FORMATS) == set(FORMATS)
