from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.support.tiny_study import write_tiny_study
from wardround.demo.study import SITE_NAMES, RunChoices, site_names, spec_for_demo
from wardround.errors import UsageInvalidError
from wardround.studies.catalogue import Study, find_study
from wardround.studies.description import MIN_SITES


@pytest.fixture
def study(tmp_path: Path) -> Study:
    write_tiny_study(tmp_path / "first")
    (tmp_path / "first" / "run.yaml").write_text(
        "local: {seed: 7, steps: 5}\nrounds: 3\ncohort: {sites: [a], round_deadline_s: 60}\n"
    )
    return find_study("first", tmp_path)


def test_spec_for_demo_replaces_roster_and_choices_and_keeps_the_rest(study: Study) -> None:
    spec = spec_for_demo(study.run_spec, RunChoices(sites=("a", "b", "c"), rounds=2, seed=11))
    assert spec == {
        "local": {"seed": 11, "steps": 5},
        "rounds": 2,
        "cohort": {"sites": ["a", "b", "c"], "quorum": 3, "round_deadline_s": 60},
    }
    assert study.run_spec["rounds"] == 3, "the study itself is not changed"


def test_spec_for_demo_without_choices_is_the_study_s_own(study: Study) -> None:
    spec = spec_for_demo(study.run_spec, RunChoices(sites=("a", "b", "c")))
    assert (spec["rounds"], spec["local"]) == (3, {"seed": 7, "steps": 5})


@pytest.mark.parametrize(("every", "rounds", "expected"), [(3, 1, 1), (3, 3, 3), (1, 2, 1)])
def test_fewer_rounds_than_between_two_evaluations_are_evaluated_at_both_ends(
    every: int, rounds: int, expected: int
) -> None:
    run_spec = {"rounds": 3, "evaluation": {"every": every, "max_records": 64}}
    spec = spec_for_demo(run_spec, RunChoices(sites=("a", "b", "c"), rounds=rounds))
    assert (spec["rounds"], spec["evaluation"]) == (rounds, {"every": expected, "max_records": 64})
    assert run_spec["evaluation"] == {"every": every, "max_records": 64}, "the study itself is not changed"


def test_site_names_are_hospitals_and_never_repeat() -> None:
    names = site_names(40)
    assert names[:3] == ("st-mary", "charite", "ucsf")
    assert len(set(names)) == 40
    assert names[len(SITE_NAMES)] == "hospital-13"


def test_too_few_sites_are_refused() -> None:
    with pytest.raises(UsageInvalidError):
        site_names(MIN_SITES - 1)
