"""Write the Grafana dashboards of ``deploy/grafana``; ``--check`` compares with what is committed instead.

A dashboard is a table of panels here; its names come from the list of metrics, so that a panel on a metric that is gone
does not even load. Import them in Grafana (10 or later) and choose the Prometheus that scrapes the coordinator, or the
hospital's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.telemetry import coordinator_metrics as c
from fl_protocol.telemetry import site_metrics as s
from fl_protocol.telemetry.metric import Metric

FOLDER = Path(__file__).resolve().parents[1] / "grafana"
WIDTH, N_COLUMNS, HEIGHT = 24, 3, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture: its title, what is drawn (expression and legend), and the unit as Grafana names it."""

    title: str
    draws: tuple[tuple[str, str], ...]
    unit: str = "short"
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: Metric, by: str = "") -> str:
    """What is counted, a second, summed over the processes."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric.name}[$__rate_interval]))"


def grown(metric: Metric, by: str = "") -> str:
    """What was counted in the last hour, summed over the processes."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({metric.name}[1h]))"


def same(metric: Metric, by: str = "") -> str:
    """What every process tells alike: once."""
    grouped = f" by ({by})" if by else ""
    return f"max{grouped} ({metric.name})"


def slowest(metric: Metric, quantile: float, by: str = "") -> str:
    """A quantile of a histogram over five minutes."""
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({grouped}) (rate({metric.name}_bucket[5m])))"


COORDINATOR: tuple[Row, ...] = (
    Row(
        title="Runs and rounds",
        panels=(
            Panel(title="Runs by state", draws=((same(c.RUNS, "state"), "{{state}}"),)),
            Panel(title="Open rounds by state", draws=((same(c.ROUNDS_OPEN, "state"), "{{state}}"),)),
            Panel(
                title="Rounds ended in the last hour",
                draws=((grown(c.ROUNDS), "committed"), (grown(c.ROUNDS_ABORTED, "reason"), "{{reason}}")),
            ),
            Panel(
                title="Median of each phase", unit="s", draws=((slowest(c.PHASE_SECONDS, 0.5, "phase"), "{{phase}}"),)
            ),
            Panel(
                title="Exchanges in the last hour",
                draws=((grown(c.EXCHANGES), "summed"), (grown(c.EXCHANGES_FAILED, "reason"), "{{reason}}")),
            ),
            Panel(
                title="Effects that wait",
                draws=((same(c.OUTBOX), "effects"), (grown(c.EFFECT_FAILURES, "kind"), "{{kind}} failed, last hour")),
            ),
        ),
    ),
    Row(
        title="Sites",
        panels=(
            Panel(title="Sites by state", draws=((same(c.SITES, "state"), "{{state}}"),)),
            Panel(title="Last heard of", unit="s", draws=((same(c.SITE_LAST_SEEN, "site_id"), "{{site_id}}"),)),
            Panel(
                title="Uploads",
                draws=(
                    (f"sum ({c.UPLOADS_IN_FLIGHT.name})", "in flight"),
                    (grown(c.UPLOADS, "outcome"), "{{outcome}}, last hour"),
                ),
            ),
            Panel(title="Masked bytes accepted", unit="Bps", draws=((rate(c.UPLOAD_BYTES), "bytes"),)),
            Panel(
                title="Calls of sites", unit="reqps", draws=((rate(c.CALLS, "call, status"), "{{call}} {{status}}"),)
            ),
            Panel(
                title="Slowest tenth of calls",
                unit="s",
                draws=((slowest(c.CALL_SECONDS, 0.9, "call"), "{{call}}"),),
            ),
        ),
    ),
    Row(
        title="The service",
        panels=(
            Panel(
                title="REST", unit="reqps", draws=((rate(c.REST_REQUESTS, "route, status"), "{{route}} {{status}}"),)
            ),
            Panel(
                title="Slowest twentieth of REST",
                unit="s",
                draws=((slowest(c.REST_SECONDS, 0.95, "route"), "{{route}}"),),
            ),
            Panel(
                title="Drivers",
                draws=(
                    (f"sum by (instance) ({c.RUNS_HELD.name})", "runs held, {{instance}}"),
                    (grown(c.LEASE_LOSSES), "leases lost, last hour"),
                ),
            ),
            Panel(
                title="Audit",
                draws=(
                    (rate(c.AUDIT_APPENDS), "events a second"),
                    (same(c.AUDIT_ROWS), "rows"),
                    (grown(c.AUDIT_FAILURES, "code"), "{{code}}, last hour"),
                ),
            ),
            Panel(
                title="Room",
                unit="bytes",
                draws=((same(c.DISK_FREE, "instance"), "disk, {{instance}}"), (f"min ({c.BLOB_FREE.name})", "blobs")),
            ),
            Panel(
                title="Database",
                draws=(
                    (f"sum by (instance) ({c.DB_CONNECTIONS.name})", "connections, {{instance}}"),
                    (f"min by (instance) ({c.DATABASE_UP.name})", "answers, {{instance}}"),
                ),
            ),
            Panel(
                title="Certificates end in",
                unit="s",
                is_number=True,
                draws=((f"min by (certificate) ({c.CERTIFICATE_LEFT.name})", "{{certificate}}"),),
            ),
            Panel(title="Rounds to scrub", draws=((same(c.SCRUB_BACKLOG), "overdue"),)),
            Panel(
                title="Memory",
                unit="bytes",
                draws=(('process_resident_memory_bytes{job="wardround-coordinator"}', "{{instance}}"),),
            ),
        ),
    ),
)

SITE: tuple[Row, ...] = (
    Row(
        title="The agent",
        panels=(
            Panel(
                title="Connected, recording, in a round",
                draws=(
                    (s.CONNECTED.name, "connected"),
                    (s.RECORDING.name, "recording"),
                    (s.IN_ROUND.name, "in a round"),
                ),
            ),
            Panel(
                title="Rounds in the last hour",
                draws=(
                    (grown(s.ROUNDS, "outcome"), "{{outcome}}"),
                    (grown(s.REFUSALS, "reason"), "refused: {{reason}}"),
                ),
            ),
            Panel(title="Denied by the policy, last hour", draws=((grown(s.POLICY_DENIALS, "rule"), "{{rule}}"),)),
            Panel(
                title="Jobs of the trainer, median",
                unit="s",
                draws=((slowest(s.JOB_SECONDS, 0.5, "outcome"), "{{outcome}}"),),
            ),
            Panel(title="Trainers that died, last hour", draws=((grown(s.TRAINER_DEATHS, "cause"), "{{cause}}"),)),
            Panel(
                title="Uploads",
                unit="Bps",
                draws=((rate(s.UPLOAD_BYTES), "bytes"), (grown(s.UPLOAD_RESUMES), "resumed, last hour")),
            ),
            Panel(
                title="Certificate ends in", unit="s", is_number=True, draws=((s.CERTIFICATE_LEFT.name, "certificate"),)
            ),
            Panel(title="Free disk", unit="bytes", draws=((s.DISK_FREE.name, "free"),)),
            Panel(
                title="Masked uploads that wait",
                draws=((s.SPOOLED.name, "uploads"), (s.SPOOL_AGE.name, "oldest, seconds")),
            ),
            Panel(
                title="Audit log",
                draws=((s.AUDIT_ROWS.name, "rows"), (grown(s.AUDIT_FAILURES, "code"), "{{code}}, last hour")),
            ),
            Panel(
                title="Memory",
                unit="bytes",
                draws=(('process_resident_memory_bytes{job="wardround-site"}', "{{instance}}"),),
            ),
        ),
    ),
)


def panel_document(panel: Panel, number: int, *, x: int, y: int) -> Mapping[str, object]:
    """A panel as Grafana has it."""
    return {
        "id": number,
        "type": "stat" if panel.is_number else "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH // N_COLUMNS, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0 if panel.unit != "s" else None}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.draws)
        ],
    }


def dashboard(title: str, uid: str, rows: Sequence[Row]) -> str:
    """A dashboard as the JSON text that Grafana imports."""
    panels: list[Mapping[str, object]] = []
    y, number = 0, 1
    for row in rows:
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": row.title,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y, number = y + 1, number + 1
        for index, panel in enumerate(row.panels):
            column = index % N_COLUMNS
            panels.append(panel_document(panel, number, x=column * (WIDTH // N_COLUMNS), y=y))
            number += 1
            if column == N_COLUMNS - 1 or index == len(row.panels) - 1:
                y += HEIGHT
    document = {
        "uid": uid,
        "title": title,
        "tags": ["wardround"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def dashboards() -> Mapping[str, str]:
    """File name to content."""
    return {
        "coordinator.json": dashboard("Wardround coordinator", "wardround-coordinator", COORDINATOR),
        "site.json": dashboard("Wardround site", "wardround-site", SITE),
    }


def main() -> int:
    """Write the files, or with ``--check`` name those that differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what is committed; exit 1 on a difference")
    check = parser.parse_args().check
    differing: list[str] = []
    for name, content in dashboards().items():
        path = FOLDER / name
        if not check:
            path.write_text(content, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != content:
            differing.append(name)
    if differing:
        sys.stderr.write(f"out of date in deploy/grafana: {', '.join(differing)}; run 'make docs'\n")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
