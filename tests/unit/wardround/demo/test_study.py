from __future__ import annotations

from pathlib import Path

import pytest

from wardround.demo.study import MIN_SITES, SITE_NAMES, RunChoices, load_study, site_names, spec_for_demo
from wardround.errors import NotFoundError, UsageInvalidError


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.yaml").write_text(
            "local: {seed: 7, steps: 5}\nrounds: 3\ncohort: {sites: [a], round_deadline_s: 60}\n"
        )
        (folder / "prepare.py").write_text("")
    return tmp_path


def test_study_that_is_unknown_lists_what_there_is(examples: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        load_study("third", examples)
    assert caught.value.exit_code == 4
    assert "first, second" in caught.value.advice


def test_study_can_be_a_path(examples: Path) -> None:
    study = load_study(str(examples / "second"), Path("nowhere"))
    assert (study.name, study.run_spec["rounds"]) == ("second", 3)


def test_spec_for_demo_replaces_roster_and_choices_and_keeps_the_rest(examples: Path) -> None:
    study = load_study("first", examples)
    spec = spec_for_demo(study, RunChoices(sites=("a", "b", "c"), rounds=2, seed=11))
    assert spec == {
        "local": {"seed": 11, "steps": 5},
        "rounds": 2,
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3, "round_deadline_s": 60},
    }
    assert study.run_spec["rounds"] == 3, "the study itself is not changed"


def test_spec_for_demo_without_choices_is_the_study_s_own(examples: Path) -> None:
    spec = spec_for_demo(load_study("first", examples), RunChoices(sites=("a", "b", "c")))
    assert (spec["rounds"], spec["local"]) == (3, {"seed": 7, "steps": 5})


def test_site_names_are_hospitals_and_never_repeat() -> None:
    names = site_names(40)
    assert names[:3] == ("st-mary", "charite", "ucsf")
    assert len(set(names)) == 40
    assert names[len(SITE_NAMES)] == "hospital-13"


def test_too_few_sites_are_refused() -> None:
    with pytest.raises(UsageInvalidError):
        site_names(MIN_SITES - 1)
