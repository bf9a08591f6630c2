"""The table of checks: every code has one meaning, and whoever is told of a failure is told what to do."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_protocol.telemetry.findings import CheckResult, Health, found, page, verdict
from site_agent.doctor.own_checks import POLICY_GOOD, POLICY_PERMITS_NOTHING
from site_agent.doctor.scene import Scene
from site_agent.doctor.table import CHECKS, run_checks
from site_agent.folder import SiteFolder
from site_agent.link.faults import ADVICE, MEANING, PathFault

OUTCOMES = [(check.name, outcome) for check in CHECKS for outcome in check.outcomes]


def test_names_are_unique_and_a_code_means_one_thing() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    meanings = {outcome.code: outcome.means for _, outcome in OUTCOMES}
    assert all(meanings[outcome.code] == outcome.means for _, outcome in OUTCOMES)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", outcome.code) for _, outcome in OUTCOMES)


@pytest.mark.parametrize(("name", "outcome"), OUTCOMES, ids=lambda value: getattr(value, "code", value))
def test_outcome_that_is_not_well_says_what_to_do(name: str, outcome) -> None:  # noqa: ANN001
    assert outcome.means.endswith(".")
    if outcome.health in {Health.WARNING, Health.FAILED}:
        assert len(outcome.advice) > 20


def test_every_fault_of_a_way_is_told_by_some_check() -> None:
    assert set(MEANING) == set(ADVICE) == set(PathFault)
    assert {fault.value for fault in PathFault} <= {outcome.code for _, outcome in OUTCOMES}


def test_failure_without_advice_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="without advice"):
        CheckResult(name="disk", code="x", health=Health.FAILED, message="full")


def test_folder_that_is_not_there_is_judged_and_stays_away(tmp_path: Path) -> None:
    folder = SiteFolder(root=tmp_path / "nothing")
    results = {
        result.name: result
        for result in run_checks(Scene(folder=folder, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), environment={}))
    }
    assert results["settings"].code == "settings-nowhere"
    assert "--enrolment" in results["settings"].advice
    assert results["identity"].code == "not-enrolled"
    assert results["trainer"].code == "trainer-unchosen"
    assert not folder.root.exists()


def test_broken_settings_are_told_once_and_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("coordinatr: {}\n")
    scene = Scene(folder=SiteFolder(root=tmp_path), clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), environment={})
    results = list(run_checks(scene))
    assert [result.name for result in results if result.code == "settings-invalid"] == ["settings"]
    assert "coordinatr" in results[0].message
    assert [result.code for result in results if result.name == "policy"] == []


def test_page_tells_an_advice_once_below_what_it_is_for() -> None:
    results = (
        found("policy", POLICY_PERMITS_NOTHING, "first"),
        found("policy", POLICY_PERMITS_NOTHING, "second"),
        found("policy", POLICY_GOOD, "third"),
    )
    assert list(page(results)) == [
        "LOOK  policy: first [policy-permits-nothing]",
        f"      -> {POLICY_PERMITS_NOTHING.advice}",
        "LOOK  policy: second [policy-permits-nothing]",
        "ok    policy: third [policy-good]",
    ]
    assert verdict(results, well="Fit.") == "Fit. 2 to look at."
