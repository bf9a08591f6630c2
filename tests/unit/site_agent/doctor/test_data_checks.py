"""Files of data with rights as hospitals give them, judged for the trainer's user, who is neither root nor this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from fl_protocol.ids import Sha256Hex
from site_agent.datasets.registry import RegisteredDataset
from site_agent.doctor.data_checks import judge_dataset
from site_agent.jobs.machine_sight import MachineSight

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
UID, GID = os.getuid(), os.getgid()
OTHER = MachineSight(uid=UID + 4711, gids=(GID + 4711,))
IN_GROUP = MachineSight(uid=UID + 4711, gids=(GID,))
OWNER = MachineSight(uid=UID or 4711, gids=(GID,))


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[RegisteredDataset]:
    path = tmp_path / "records.jsonl"
    path.write_text("{}\n")
    before = (NOW - timedelta(days=3)).timestamp()
    os.utime(path, (before, before))
    yield RegisteredDataset(
        name="medical-qa",
        path=path,
        format="jsonl",
        purposes=("research",),
        description=None,
        sha256=Sha256Hex("ab" * 32),
        n_records=1,
        n_patients=1,
        registered_at=NOW - timedelta(days=2),
        registered_by="test",
        withdrawn_at=None,
    )
    path.chmod(0o600)


def codes(dataset: RegisteredDataset, sight: MachineSight | None, *, is_trainer_here: bool = True) -> list[str]:
    results = list(judge_dataset(dataset, sight=sight, is_trainer_here=is_trainer_here, now=NOW))
    assert all(result.advice for result in results if result.health.value in {"warning", "failed"})
    assert not any("records.jsonl" in result.message for result in results), "no path of data is told"
    return [result.code for result in results]


@pytest.mark.parametrize(
    ("mode", "sight", "expected"),
    [
        (0o440, IN_GROUP, []),
        (0o640, IN_GROUP, []),
        (0o640, OTHER, ["dataset-unreadable"]),
        (0o600, IN_GROUP, ["dataset-unreadable"]),
        (0o644, OTHER, ["dataset-open"]),
        (0o660, IN_GROUP, ["dataset-writable"]),
        (0o646, OTHER, ["dataset-open", "dataset-writable"]),
        (0o602, OTHER, ["dataset-unreadable", "dataset-writable"]),
    ],
)
def test_rights_are_judged_for_the_trainers_user(
    dataset: RegisteredDataset, mode: int, sight: MachineSight, expected: list[str]
) -> None:
    dataset.path.chmod(mode)
    assert codes(dataset, sight) == expected


def test_owner_that_may_not_read_is_not_helped_by_its_group(dataset: RegisteredDataset) -> None:
    os.chown(dataset.path, UID, GID)
    dataset.path.chmod(0o040)
    if UID == 0:
        os.chown(dataset.path, 4711, GID)
    assert codes(dataset, OWNER) == ["dataset-unreadable"]
    os.chown(dataset.path, UID, GID)


def test_file_that_was_written_since_is_told(dataset: RegisteredDataset) -> None:
    dataset.path.chmod(0o440)
    after = (NOW - timedelta(days=1)).timestamp()
    os.utime(dataset.path, (after, after))
    assert codes(dataset, IN_GROUP) == ["dataset-written-since"]


def test_file_that_is_gone_is_missing_only_where_the_trainer_would_see_it(dataset: RegisteredDataset) -> None:
    dataset.path.unlink()
    try:
        assert codes(dataset, IN_GROUP) == ["dataset-missing"]
        assert codes(dataset, IN_GROUP, is_trainer_here=False) == ["dataset-elsewhere"]
    finally:
        dataset.path.touch()


def test_dataset_whose_last_day_is_near_is_told(dataset: RegisteredDataset) -> None:
    from dataclasses import replace

    dataset.path.chmod(0o440)
    assert codes(replace(dataset, expires_on=date(2026, 5, 9)), IN_GROUP) == ["dataset-expires"]
    assert codes(replace(dataset, expires_on=date(2026, 6, 9)), IN_GROUP) == []
