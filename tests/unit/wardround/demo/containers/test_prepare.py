from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.e2e.support.tiny_study import RECORD_COUNTS, write_tiny_study
from wardround.demo.containers.places import Places
from wardround.demo.containers.prepare import prepare
from wardround.demo.held_out import split_hash
from wardround.demo.live_table import PlainProgress
from wardround.demo.processes import Supervisor
from wardround.demo.study import RunChoices
from wardround.demo.workspace import Checkout, Programs
from wardround.errors import UsageInvalidError

SITES = ("st-mary", "charite", "ucsf")
CHECKOUT = Checkout(root=Path(__file__).parents[5])

# In the place of the trainer: what its verbs write, without a model.
TRAINER = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("verb")
parser.add_argument("folder", nargs="?")
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--json", action="store_true")
arguments, _ = parser.parse_known_args()
if arguments.verb == "digest-model":
    print(json.dumps({"base_model_sha256": "ab" * 32}))
else:
    raise SystemExit("no adapter here")
"""


def folders(tmp_path: Path) -> Places:
    places = Places(home=tmp_path / "home", models=tmp_path / "models", data=tmp_path / "data")
    for folder in (places.home, places.models, *(places.data / site for site in SITES)):
        folder.mkdir(parents=True)
    return places


def attempt(places: Places, study: str, tmp_path: Path) -> None:
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    logs = tmp_path / "logs"
    logs.mkdir()
    with Supervisor(logs, {}) as supervisor:
        prepare(
            places,
            study_name=study,
            choices=RunChoices(sites=SITES, rounds=2),
            checkout=CHECKOUT,
            supervisor=supervisor,
            programs=Programs(trainer=(sys.executable, str(trainer))),
            progress=PlainProgress(Console(file=io.StringIO())),
        )


@pytest.mark.parametrize("study", ["blood-cells", "nih-answers"])
def test_prepare_of_a_study_that_needs_more_than_the_image_has_says_how_else(study: str, tmp_path: Path) -> None:
    places = folders(tmp_path)
    with pytest.raises(UsageInvalidError) as caught:
        attempt(places, study, tmp_path)
    assert f"wardround demo --study {study}" in caught.value.advice
    assert not any(places.home.iterdir())


def test_prepare_gives_each_site_its_own_records_and_keeps_one_held_out_question(tmp_path: Path) -> None:
    places, study = folders(tmp_path), tmp_path / "studies" / "tiny"
    write_tiny_study(study)
    (study / "study.yaml").write_text((study / "study.yaml").read_text() + "base_model: {builder: make_base.py}\n")
    (study / "make_base.py").write_text("import sys, pathlib; pathlib.Path(sys.argv[2]).mkdir(); print('{}')\n")
    # It ends at the adapter, which this trainer does not make: what came before is looked at.
    with pytest.raises(Exception, match="init-adapter failed"):
        attempt(places, str(study), tmp_path)
    assert not places.is_prepared
    for number, (site, count) in enumerate(zip(SITES, RECORD_COUNTS, strict=True), start=1):
        (file,) = (places.data / site).iterdir()
        assert file.name == f"site-{number}.jsonl"
        assert len(file.read_text().splitlines()) == count
        assert file.stat().st_mode & 0o444 == 0o444
    assert not places.workspace.data.exists()
    (question,) = places.question_file.read_text().splitlines()
    first = (places.data / "st-mary" / "site-1.jsonl").read_text().splitlines()
    lowest = min(first, key=lambda line: split_hash(json.loads(line)))
    assert question == lowest
