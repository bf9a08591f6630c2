from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wardround.demo.held_out import first_held_out, split_hash
from wardround.errors import DemoFailedError


def test_split_hash_is_the_first_eight_bytes_of_sha256_as_a_big_endian_number() -> None:
    digest = hashlib.sha256(b"wardround/split/HP:1").hexdigest()
    assert split_hash({"id": "HP:1"}) == int(digest[:16], 16)


def test_split_hash_goes_by_the_patient_where_there_is_one() -> None:
    assert split_hash({"id": "a", "patient_id": "p"}) == split_hash({"id": "b", "patient_id": "p"})
    assert split_hash({"id": "a", "patient_id": "p"}) != split_hash({"id": "a"})


def write(path: Path, n: int) -> dict[str, int]:
    lines = [{"id": f"r{i}", "prompt": f"p{i}", "completion": f"c{i}"} for i in range(n)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {f"p{i}": int(hashlib.sha256(f"wardround/split/r{i}".encode()).hexdigest()[:16], 16) for i in range(n)}


def test_first_held_out_is_the_record_with_the_lowest_hash(tmp_path: Path) -> None:
    hashes = write(tmp_path / "d.jsonl", 200)
    record = first_held_out(tmp_path / "d.jsonl", holdout_fraction=0.1)
    assert record.prompt == min(hashes, key=lambda prompt: hashes[prompt])
    assert record.completion == record.prompt.replace("p", "c")


def test_dataset_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", 20)
    with pytest.raises(DemoFailedError):
        first_held_out(tmp_path / "d.jsonl", holdout_fraction=0.0)
