"""``python -m benchmarks studies`` on a tiny model: resumed after a kill, strict about settings, equal budgets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training
from benchmarks.studies import main
from tests.e2e.support.tiny_study import MODEL_NAME, write_tiny_study
from tests.support.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[3]
SITES = ("st-mary", "charite", "ucsf")

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

TABLE = """\
table:
  seeds: 2
  search: {learning_rates: [5.0e-3, 2.0e-2], steps: [2], validation_fraction: 0.2}
"""
N_CELLS = 2 * (1 + 1 + 3) + 2 * (1 + 1 + 1 + 3)
"""The search: two rates by federated, pooled and three local. The table: two seeds of these, and before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A study, its model and its table."""

    root: Path

    @property
    def table(self) -> Path:
        return self.root / "table.json"

    @property
    def study(self) -> Path:
        return self.root / "tiny-definitions"

    def words(self, *more: str) -> list[str]:
        options = ["--study", str(self.study), "--models-dir", str(self.root / "models"), "--table", str(self.table)]
        return [*options, "--threads", "1", *more]

    def start(self) -> subprocess.Popen[bytes]:
        """The command as a process of its own."""
        program = [sys.executable, "-m", "benchmarks", "studies", *self.words()]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        quiet = subprocess.DEVNULL
        return subprocess.Popen(program, cwd=ROOT, env=variables, stdout=quiet, stderr=quiet)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.table.read_text())
        return document

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.study / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What a command in this process came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.out)["error"]
        return error


def call(*words: str) -> Called:
    """The command in this process, which has torch already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return Called(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    """A table whose command was killed after some cells, and the table as it was then."""
    place = Place(root=tmp_path_factory.mktemp("study-table"))
    write_tiny_study(place.study)
    place.edit("study.yaml", "table: {seeds: 2}\n", TABLE)
    place.edit("run.yaml", "steps: 6", "steps: 2")
    make_tiny_model(place.root / "models" / MODEL_NAME)
    filling = place.start()
    try:
        deadline = time.monotonic() + 240
        while not place.table.exists() or len(place.document()["cells"]) < 3:
            assert filling.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        filling.send_signal(signal.SIGKILL)
        filling.wait(timeout=30)
    finally:
        filling.kill()
        filling.wait()
    return place, place.document()


@pytest.fixture(scope="module")
def finished(interrupted: tuple[Place, dict[str, Any]]) -> tuple[Place, dict[str, Any]]:
    """The same table after the command was called again."""
    place, _ = interrupted
    done = call(*place.words("--json"))
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document == place.document()
    return place, document


@pytest.fixture
def copied(finished: tuple[Place, dict[str, Any]], tmp_path: Path) -> Place:
    """The finished table's folder, for a test that changes it."""
    shutil.copytree(finished[0].root, tmp_path / "copy")
    return Place(root=tmp_path / "copy")


def test_command_that_was_killed_goes_on_with_the_cells_that_are_missing(
    interrupted: tuple[Place, dict[str, Any]], finished: tuple[Place, dict[str, Any]]
) -> None:
    _, before = interrupted
    place, after = finished
    assert 3 <= len(before["cells"]) < N_CELLS
    assert len(after["cells"]) == N_CELLS
    # A cell's seconds are those of its own computation: one that was computed again would have others.
    assert all(cell in after["cells"] for cell in before["cells"])
    assert [path.name for path in place.root.glob(".table.json*")] in ([], [f".{place.table.name}.tmp"])


def test_command_on_a_whole_table_computes_nothing(copied: Place) -> None:
    before = copied.table.read_bytes()
    again = call(*copied.words())
    assert again.code == 0
    assert f"0 cells filled, {N_CELLS} were there" in again.err
    assert copied.table.read_bytes() == before


def test_every_arm_took_equally_many_steps_and_is_judged_by_the_same_records(
    finished: tuple[Place, dict[str, Any]],
) -> None:
    cells = finished[1]["cells"]
    table = [cell for cell in cells if cell["phase"] == "table"]
    assert {cell["arm"] for cell in table} == {"before", "federated", "pooled", "local"}
    assert {cell["optimiser_steps"] for cell in table if cell["arm"] != "before"} == {3 * 2}
    assert {cell["site"] for cell in table if cell["arm"] == "local"} == set(SITES)
    judged = {
        phase: {
            tuple(sorted((site, sums["n_records"], sums["n_units"]) for site, sums in cell["evaluated"].items()))
            for cell in cells
            if cell["phase"] == phase
        }
        for phase in ("search", "table")
    }
    assert len(judged["table"]) == len(judged["search"]) == 1
    assert judged["table"] != judged["search"]
    assert {site for site, _, _ in next(iter(judged["table"]))} == set(SITES)


def test_setting_is_the_one_that_is_best_on_the_validation_records(finished: tuple[Place, dict[str, Any]]) -> None:
    document = finished[1]
    means: dict[tuple[str, float], list[float]] = {}
    for cell in document["cells"]:
        if cell["phase"] == "search":
            loss = sum(sums["loss_sum"] for sums in cell["evaluated"].values())
            units = sum(sums["n_units"] for sums in cell["evaluated"].values())
            means.setdefault((cell["arm"], cell["learning_rate"]), []).append(loss / units)
    assert len(means) == 6
    for arm in ("federated", "pooled", "local"):
        best = min((0.005, 0.02), key=lambda rate: sum(means[arm, rate]) / len(means[arm, rate]))
        assert document["chosen"]["learning_rates"][arm] == best
        used = {cell["learning_rate"] for cell in document["cells"] if cell["phase"] == "table" and cell["arm"] == arm}
        assert used == {best}


def test_training_lowers_the_held_out_loss(finished: tuple[Place, dict[str, Any]]) -> None:
    losses = {
        (cell["arm"], cell["site"], cell["seed"]): sum(sums["loss_sum"] for sums in cell["evaluated"].values())
        for cell in finished[1]["cells"]
        if cell["phase"] == "table"
    }
    for seed in (7, 8):
        assert losses["federated", "", seed] < losses["before", "", seed]
        assert losses["pooled", "", seed] < losses["before", "", seed]


def test_more_seeds_keep_the_cells_that_are_there(copied: Place) -> None:
    before = copied.document()["cells"]
    more = call(*copied.words("--seeds", "3", "--arm", "before"))
    assert more.code == 0, more.err
    after = copied.document()["cells"]
    assert len(after) == len(before) + 1
    assert all(cell in after for cell in before)


def test_cells_of_other_data_are_refused_and_done_again_when_asked(copied: Place) -> None:
    before = copied.table.read_bytes()
    copied.edit("prepare.py", "It is a {name}", "It is one {name}")
    refused = call(*copied.words("--json", "--arm", "before"))
    assert refused.code == 2
    error = refused.error
    assert error["code"] == "study-settings-differ"
    assert "data_sha256.charite" in error["message"]
    assert "--redo" in error["advice"]
    assert copied.table.read_bytes() == before
    redone = call(*copied.words("--redo", "--arm", "before", "--seeds", "1"))
    assert redone.code == 0, redone.err
    assert [cell["arm"] for cell in copied.document()["cells"]] == ["before"]


def test_cells_of_another_specification_are_refused(copied: Place) -> None:
    copied.edit("run.yaml", "clip_norm: 20.0", "clip_norm: 10.0")
    refused = call(*copied.words())
    assert refused.code == 2
    assert "run_spec.privacy.clip_norm" in refused.err


def test_federated_arm_through_the_secure_sum_is_the_plain_one_but_for_quantisation(copied: Place) -> None:
    plain = {
        cell["seed"]: cell["evaluated"]
        for cell in copied.document()["cells"]
        if (cell["phase"], cell["arm"]) == ("table", "federated")
    }
    refused = call(*copied.words("--secure", "--arm", "federated"))
    assert refused.code == 2
    assert "sum of federated" in refused.err
    secure = call(*copied.words("--secure", "--arm", "federated", "--redo"))
    assert secure.code == 0, secure.err
    cells = [cell for cell in copied.document()["cells"] if (cell["phase"], cell["arm"]) == ("table", "federated")]
    assert len(cells) == 2
    for cell in cells:
        for site, sums in cell["evaluated"].items():
            of_plain = plain[cell["seed"]][site]
            assert sums["n_units"] == of_plain["n_units"]
            assert sums["loss_sum"] == pytest.approx(of_plain["loss_sum"], rel=5e-3)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--study", "no-such-study"], 4, "study-unknown"),
        (["--study", "phenotype-definitions", "--data", "."], 2, "usage-invalid"),
        (["--study", "trial-timelines"], 2, "study-table-elsewhere"),
        (["--study", "nih-answers"], 2, "study-data-missing"),
    ],
)
def test_wrong_usage_is_said_as_a_typed_error(words: list[str], code: int, error: str) -> None:
    done = call(*words, "--json")
    assert done.code == code
    assert done.error["code"] == error


def test_table_of_another_study_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    write_tiny_study(tmp_path / "tiny-definitions")
    (tmp_path / "table.json").write_text('{"rows": []}')
    refused = call(*Place(root=tmp_path).words("--json"))
    assert refused.code == 2
    assert refused.error["code"] == "study-table-unreadable"
    assert (tmp_path / "table.json").read_text() == '{"rows": []}'


def test_specification_of_the_user_s_own_fills_a_table_of_its_own_only(copied: Place, tmp_path: Path) -> None:
    own = tmp_path / "my-run.yaml"
    own.write_text((copied.study / "run.yaml").read_text().replace("clip_norm: 20.0", "clip_norm: 5.0"))
    words = ["--study", str(copied.study), "--models-dir", str(copied.root / "models"), "--run-spec", str(own)]
    refused = call(*words, "--json")
    assert (refused.code, refused.error["code"]) == (2, "usage-invalid")
    differing = call(*copied.words("--run-spec", str(own), "--json"))
    assert differing.code == 2
    assert differing.error["code"] == "study-settings-differ"
    assert "run_spec.privacy.clip_norm" in differing.error["message"]


def test_training_measures_a_specification_of_the_user_s_own_without_the_local_arm(
    copied: Place, tmp_path: Path
) -> None:
    own = tmp_path / "my-run.yaml"
    own.write_text((copied.study / "run.yaml").read_text().replace("steps: 2", "steps: 1"))
    words = ["--study", str(copied.study), "--models-dir", str(copied.root / "models"), "--run-spec", str(own)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = training.main([*words, "--seeds", "1", "--threads", "1", "--without-local", "--json"])
    assert code in {0, 1}, "whether so little training meets the aim is not what is tested"
    names = [row["name"] for row in json.loads(out.getvalue())["rows"]]
    # Three rounds of one step, as the user's file says.
    assert any("federated, 3 steps" in name for name in names)
    assert not any("local" in name for name in names)
