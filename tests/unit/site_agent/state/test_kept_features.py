"""Features go with their run, and with no other."""

from __future__ import annotations

from pathlib import Path

from fl_protocol.ids import RunId
from site_agent.jobs.job_dir import FEATURES_FOLDER
from site_agent.state.kept_features import forget_features, forget_features_of_all_but

ONE, TWO, THREE = (RunId(f"run-{letter * 26}") for letter in "abc")


def kept(jobs_dir: Path) -> set[str]:
    return {path.parent.parent.name for path in jobs_dir.glob(f"*/{FEATURES_FOLDER}/f")}


def fill(jobs_dir: Path) -> None:
    for run_id in (ONE, TWO, THREE):
        (jobs_dir / run_id / FEATURES_FOLDER).mkdir(parents=True)
        (jobs_dir / run_id / FEATURES_FOLDER / "f").write_bytes(b"x")
        (jobs_dir / run_id / "1.0").mkdir()


def test_features_of_a_run_that_is_over_are_deleted_and_its_jobs_left(tmp_path: Path) -> None:
    fill(tmp_path)
    for _ in range(2):
        forget_features(tmp_path, ONE)
        assert kept(tmp_path) == {TWO, THREE}
    assert (tmp_path / ONE / "1.0").is_dir()


def test_features_of_runs_that_do_not_stand_any_more_are_deleted(tmp_path: Path) -> None:
    fill(tmp_path)
    forget_features_of_all_but(tmp_path, {TWO})
    assert kept(tmp_path) == {TWO}
    forget_features_of_all_but(tmp_path / "none", set())
