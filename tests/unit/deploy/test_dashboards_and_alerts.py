"""Dashboards and alerts speak of metrics that exist, with labels that they have, and of pages that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml

from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.site_metrics import SITE_METRICS

ROOT = Path(__file__).resolve().parents[3]
GRAFANA, PROMETHEUS = ROOT / "deploy" / "grafana", ROOT / "deploy" / "prometheus"
WRAPPING = (
    promql_parser.AggregateExpr,
    promql_parser.ParenExpr,
    promql_parser.UnaryExpr,
    promql_parser.SubqueryExpr,
)
BY_SCRAPE = frozenset({"job", "instance"})
"""Labels that Prometheus gives every series."""
OTHERS: dict[str, frozenset[str]] = {
    "up": BY_SCRAPE,
    "process_resident_memory_bytes": BY_SCRAPE,
    "process_cpu_seconds_total": BY_SCRAPE,
}
LABELS: dict[str, frozenset[str]] = {
    **OTHERS,
    **{
        series: frozenset(metric.label_names) | BY_SCRAPE | ({"le"} if series.endswith("_bucket") else frozenset())
        for metric in (*COORDINATOR_METRICS, *SITE_METRICS)
        for series in metric.series_names
    },
}
VALUES = {
    (metric.name, label.name): frozenset(label.values)
    for metric in (*COORDINATOR_METRICS, *SITE_METRICS)
    for label in metric.labels
    if label.values
}


def selectors(node: object) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from selectors(node.lhs)
        yield from selectors(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from selectors(argument)
    elif isinstance(node, WRAPPING):
        yield from selectors(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), type(node)


def groupings(node: object) -> Iterator[tuple[frozenset[str], object]]:
    """The labels of each ``by (...)`` and what is below it."""
    if isinstance(node, promql_parser.AggregateExpr):
        if node.modifier is not None:
            yield frozenset(node.modifier.labels), node.expr
        yield from groupings(node.expr)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from groupings(node.lhs)
        yield from groupings(node.rhs)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from groupings(argument)
    elif isinstance(node, promql_parser.ParenExpr):
        yield from groupings(node.expr)


def faults_of(expression: str) -> list[str]:
    """What an expression says of metrics that is not so."""
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    faults = []
    for selector in selectors(parsed):
        if selector.name not in LABELS:
            faults.append(f"no such metric: {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in LABELS[selector.name]:
                faults.append(f"{selector.name} has no label {matcher.name}")
            known = VALUES.get((selector.name, matcher.name))
            never = set() if known is None else set(matcher.value.split("|")) - known
            faults += [f"{selector.name}: {matcher.name} is never {value}" for value in sorted(never)]
    for labels, below in groupings(parsed):
        for selector in selectors(below):
            wrong = labels - LABELS.get(selector.name, labels)
            faults += [f"{selector.name} has no label {label}" for label in sorted(wrong)]
    return faults


def expressions() -> list[tuple[str, str, str]]:
    """Where, the expression, and the texts that use its labels."""
    drawn = [
        (f"{file.name}: {panel['title']}", target["expr"], target["legendFormat"])
        for file in sorted(GRAFANA.glob("*.json"))
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", ())
    ]
    return [*drawn, *((str(rule["alert"]), str(rule["expr"]), "") for rule in rules())]


def rules() -> list[dict[str, object]]:
    return [
        rule
        for file in sorted(PROMETHEUS.glob("*.rules.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


@pytest.mark.parametrize(("place", "expression", "legend"), expressions(), ids=lambda value: str(value)[:60])
def test_expression_speaks_of_what_exists(place: str, expression: str, legend: str) -> None:
    assert faults_of(expression) == [], place
    labels = {
        label
        for _, below in groupings(promql_parser.parse(expression.replace("$__rate_interval", "5m")))
        for selector in selectors(below)
        for label in LABELS[selector.name]
    } | BY_SCRAPE
    for word in legend.split("{{")[1:]:
        assert word.split("}}")[0] in labels, (place, legend)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("wardround_coordinator_rounds", "no such metric: wardround_coordinator_rounds"),
        ('wardround_coordinator_runs{stat="ACTIVE"}', "wardround_coordinator_runs has no label stat"),
        ('wardround_coordinator_runs{state="RUNNING"}', "wardround_coordinator_runs: state is never RUNNING"),
        (
            "sum by (reason) (wardround_coordinator_rounds_total)",
            "wardround_coordinator_rounds_total has no label reason",
        ),
        ("rate(wardround_coordinator_phase_seconds[5m])", "no such metric: wardround_coordinator_phase_seconds"),
    ],
)
def test_wrong_expression_is_found(expression: str, fault: str) -> None:
    assert faults_of(expression) == [fault]


def test_dashboards_are_those_of_the_table() -> None:
    script = ROOT / "deploy" / "scripts" / "generate_dashboards.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


def test_every_metric_but_a_few_is_drawn_or_watched() -> None:
    spoken = {
        selector.name
        for _, text, _ in expressions()
        for selector in selectors(promql_parser.parse(text.replace("$__rate_interval", "5m")))
    }
    unseen = {
        metric.name
        for metric in (*COORDINATOR_METRICS, *SITE_METRICS)
        if not spoken & {metric.name, *metric.series_names}
    }
    # Who runs what, and how long a look itself takes.
    assert unseen == {
        "wardround_coordinator_build_info",
        "wardround_coordinator_scrape_read_seconds",
        "wardround_site_build_info",
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    page, _, section = rule["annotations"]["runbook"].partition("#")
    text = (ROOT / page).read_text()
    if section:
        headings = [line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")]
        assert section in headings
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
