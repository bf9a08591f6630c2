"""Prometheus' own checker reads the alert rules, and each alert fires where it should and only there.

What goes in is a story in promtool's notation of series (``0+1x5``: from 0, rising by one, five times); what must come
out stands beside it: at an instant the alert with its labels and its sentence, at another one nothing.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.support.tools import tool

pytestmark = pytest.mark.system

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
C, S = "wardround_coordinator", "wardround_site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """An alert, the series that make it fire, when it must have, and when not yet; all a minute apart."""

    alert: str
    series: dict[str, str]
    fires_at: str
    silent_at: str
    labels: dict[str, str] = field(default_factory=dict)
    summary: str = ""


def of(metric: str, **labels: str) -> str:
    shown = ", ".join(f'{name}="{value}"' for name, value in {"instance": "c:9464", **labels}.items())
    return f"{metric}{{{shown}}}"


STORIES = (
    Story(
        alert="WardroundCoordinatorDown",
        series={'up{job="wardround-coordinator", instance="c:9464"}': "1x4 0x10"},
        silent_at="5m",
        fires_at="9m",
        labels={"job": "wardround-coordinator", "instance": "c:9464", "severity": "page"},
        summary="c:9464 does not answer",
    ),
    Story(
        alert="WardroundDatabaseDown",
        series={of(f"{C}_database_up"): "1x4 0x10"},
        silent_at="4m",
        fires_at="8m",
        labels={"instance": "c:9464", "severity": "page"},
        summary="c:9464 cannot read its database",
    ),
    Story(
        alert="WardroundNothingCanBeRecorded",
        series={
            of(f"{C}_audit_failures_total", code="database-full"): "0x4 1+1x10",
            of(f"{C}_audit_failures_total", code="database-busy"): "0+9x15",
        },
        silent_at="4m",
        fires_at="8m",
        labels={"instance": "c:9464", "code": "database-full", "severity": "page"},
        summary="c:9464 cannot record what happens (database-full)",
    ),
    Story(
        alert="WardroundDriverStands",
        series={of(f"{C}_driver_last_turn_age_seconds"): "1x4 90x10"},
        silent_at="4m",
        fires_at="8m",
        labels={"instance": "c:9464", "severity": "page"},
        summary="The driver of c:9464 has not turned for 1m 30s",
    ),
    Story(
        alert="WardroundEffectsWait",
        series={of(f"{C}_outbox_oldest_age_seconds"): "0+60x40"},
        silent_at="15m",
        fires_at="21m",
        labels={"severity": "ticket"},
        summary="A sum, a fold or a release has waited for 21m 0s",
    ),
    Story(
        alert="WardroundEffectsFail",
        series={of(f"{C}_effect_failures_total", kind="compute-sum"): "0x5 1 2 3 4 5 5x20"},
        silent_at="6m",
        fires_at="15m",
        labels={"kind": "compute-sum", "severity": "ticket"},
        summary="compute-sum failed 5 times in a quarter of an hour",
    ),
    Story(
        alert="WardroundLeasesChangeHands",
        series={of(f"{C}_lease_losses_total"): "0x10 1 2 3 3x30"},
        silent_at="11m",
        fires_at="30m",
        labels={"severity": "ticket"},
        summary="Drivers lost 3 leases in half an hour",
    ),
    Story(
        alert="WardroundSiteOffline",
        series={
            of(f"{C}_site_last_seen_age_seconds", site_id="st-mary"): "0+60x60",
            of(f"{C}_site_last_seen_age_seconds", site_id="charite"): "20x60",
        },
        silent_at="34m",
        fires_at="40m",
        labels={"site_id": "st-mary", "severity": "ticket"},
        summary="st-mary was last heard of 40m 0s ago",
    ),
    Story(
        alert="WardroundRoundsAbort",
        series={
            of(f"{C}_rounds_aborted_total", reason="quorum-not-reached"): "0x5 1 2 3 3x60",
            of(f"{C}_rounds_aborted_total", reason="run-cancelled"): "0+5x70",
        },
        silent_at="6m",
        fires_at="60m",
        labels={"reason": "quorum-not-reached", "severity": "ticket"},
        summary="3 attempts at rounds ended with quorum-not-reached in an hour",
    ),
    Story(
        alert="WardroundSumRefused",
        series={
            of(f"{C}_exchanges_failed_total", reason="dealer-blamed"): "0x5 1x60",
            of(f"{C}_exchanges_failed_total", reason="too-few-uploaded"): "0+1x60",
        },
        silent_at="5m",
        fires_at="10m",
        labels={"reason": "dealer-blamed", "severity": "page"},
        summary="A secure sum was refused: dealer-blamed",
    ),
    Story(
        alert="WardroundCertificateEnds",
        series={
            of(f"{C}_certificate_seconds_left", certificate="root"): "864000x90",
            of(f"{C}_certificate_seconds_left", certificate="issuer"): "8640000x90",
        },
        silent_at="59m",
        fires_at="61m",
        labels={"certificate": "root", "severity": "ticket"},
        summary="The root certificate ends in 10d 0h 0m 0s",
    ),
    Story(
        alert="WardroundDiskFull",
        series={of(f"{C}_disk_free_bytes"): "5000000000x4 536870912x10"},
        silent_at="8m",
        fires_at="12m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="c:9464 has 512MiB left",
    ),
    Story(
        alert="WardroundDiskFull",
        series={
            of(f"{C}_disk_free_bytes"): "5000000000x15",
            of(f"{C}_blob_store_free_bytes"): "5000000000x4 536870912x10",
        },
        silent_at="8m",
        fires_at="12m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="c:9464 has 512MiB left",
    ),
    Story(
        alert="WardroundScrubbingBehind",
        series={
            of(f"{C}_scrub_backlog_rounds"): "0x4 2x120",
            of(f"{C}_scrub_passes_total"): "0+1x130",
        },
        silent_at="60m",
        fires_at="70m",
        labels={"severity": "ticket"},
        summary="Masked uploads and shares are kept longer than was promised",
    ),
    Story(
        alert="WardroundScrubbingBehind",
        series={of(f"{C}_scrub_backlog_rounds"): "0x160", of(f"{C}_scrub_passes_total"): "0+1x20 20x140"},
        silent_at="60m",
        fires_at="120m",
        labels={"severity": "ticket"},
        summary="Masked uploads and shares are kept longer than was promised",
    ),
    Story(
        alert="WardroundDatabasePoolExhausted",
        series={of(f"{C}_db_connections"): "3x4 16x10", of(f"{C}_db_connections_limit"): "16x15"},
        silent_at="8m",
        fires_at="12m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="c:9464 uses nine tenths of its connections to the database",
    ),
    Story(
        alert="WardroundAgentDown",
        series={'up{job="wardround-site", instance="s:9465"}': "1x4 0x10"},
        silent_at="8m",
        fires_at="12m",
        labels={"job": "wardround-site", "instance": "s:9465", "severity": "ticket"},
        summary="The Wardround agent does not answer",
    ),
    Story(
        alert="WardroundAgentDisconnected",
        series={of(f"{S}_connected"): "1x4 0x30"},
        silent_at="18m",
        fires_at="22m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="The agent runs, and does not reach the coordinator",
    ),
    Story(
        alert="WardroundAgentCannotRecord",
        series={of(f"{S}_recording"): "1x4 0x30"},
        silent_at="4m",
        fires_at="7m",
        labels={"instance": "c:9464", "severity": "page"},
        summary="The agent cannot record what it does, so it does nothing",
    ),
    Story(
        alert="WardroundSiteCertificateEnds",
        series={of(f"{S}_certificate_seconds_left"): "90000x4 7200x30"},
        silent_at="10m",
        fires_at="20m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="The site's certificate ends in 2h 0m 0s and was not renewed",
    ),
    Story(
        alert="WardroundSiteDiskFull",
        series={of(f"{S}_disk_free_bytes"): "5000000000x4 536870912x10"},
        silent_at="8m",
        fires_at="12m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="The agent's disk has 512MiB left",
    ),
    Story(
        alert="WardroundTrainerDies",
        series={of(f"{S}_trainer_deaths_total", cause="killed"): "0x5 1 2 2x60"},
        silent_at="6m",
        fires_at="30m",
        labels={"cause": "killed", "severity": "ticket"},
        summary="Trainers ended without finishing: killed",
    ),
    Story(
        alert="WardroundPolicyDenies",
        series={of(f"{S}_policy_denials_total", rule="hours.train"): "0x5 1x60"},
        silent_at="5m",
        fires_at="10m",
        labels={"rule": "hours.train", "severity": "ticket"},
        summary="This site's policy denied a round: hours.train",
    ),
    Story(
        alert="WardroundMaskedUploadLingers",
        series={of(f"{S}_spool_oldest_age_seconds"): "100000x4 200000x100"},
        silent_at="60m",
        fires_at="70m",
        labels={"instance": "c:9464", "severity": "ticket"},
        summary="A masked upload has waited for the end of its round for 2d 7h 33m 20s",
    ),
)


@pytest.fixture(scope="module")
def rules() -> dict[str, dict[str, dict[str, str]]]:
    """Every rule, by name."""
    files = sorted(PROMETHEUS.glob("*.rules.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(tool("promtool")), *words], capture_output=True, text=True, timeout=60, check=False)


def test_rules_and_the_example_are_what_prometheus_reads() -> None:
    done = promtool("check", "rules", *map(str, sorted(PROMETHEUS.glob("*.rules.yml"))))
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_story(rules: dict[str, object]) -> None:
    assert {story.alert for story in STORIES} == set(rules)


def run_story(story: Story, rules: dict[str, dict[str, dict[str, str]]], folder: Path, *, summary: str) -> str:
    """What promtool says of a story; empty where all is as it must be."""
    rule = rules[story.alert]
    annotations = {**rule["annotations"], "summary": summary}
    fired = {"exp_labels": story.labels, "exp_annotations": annotations}
    test = {
        "rule_files": [str(file) for file in sorted(PROMETHEUS.glob("*.rules.yml"))],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in story.series.items()],
                "alert_rule_test": [
                    {"eval_time": story.silent_at, "alertname": story.alert, "exp_alerts": []},
                    {"eval_time": story.fires_at, "alertname": story.alert, "exp_alerts": [fired]},
                ],
            }
        ],
    }
    file = folder / "story.yml"
    file.write_text(yaml.safe_dump(test, sort_keys=False))
    done = promtool("test", "rules", str(file))
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.alert)
def test_alert_fires_when_it_should_and_not_before(
    story: Story, rules: dict[str, dict[str, dict[str, str]]], tmp_path: Path
) -> None:
    assert run_story(story, rules, tmp_path, summary=story.summary) == ""


def test_story_that_is_not_true_is_told(rules: dict[str, dict[str, dict[str, str]]], tmp_path: Path) -> None:
    assert "FAILED" in run_story(STORIES[0], rules, tmp_path, summary="something else")
