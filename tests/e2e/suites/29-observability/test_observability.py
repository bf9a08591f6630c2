"""A whole run as its operators see it: metrics of every process, traces at a real collector, log lines; and none of a
site's own figures in any of them. Two sites show metrics and one of them tells traces; the third does neither.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.log_fields import LOG_FIELDS
from fl_protocol.telemetry.metric import Metric
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from fl_protocol.telemetry.span_names import SPAN_ATTRIBUTES, SpanName
from fl_protocol.telemetry.trace_ids import round_trace, run_trace
from tests.e2e.support import recording_site
from tests.e2e.support.federation import Federation, free_port
from tests.e2e.support.private_figures import read_recording
from tests.e2e.support.template import ENVIRONMENT, SITES, SMALL, Template, make_template, records_of
from tests.support.otlp_collector import CollectedSpan, Collector
from wardround.errors import RefusedError

pytestmark = [pytest.mark.e2e, pytest.mark.training, pytest.mark.timeout(900)]

TRACED, SHOWN, SILENT = SMALL.sites
PLANTED = {name: 1009 + 4 * number for number, name in enumerate(SITES)}
"""Records of each site: figures that nothing else here can have by chance."""
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def write_data(site: str, folder: Path) -> Path:
    file = folder / f"{site}.jsonl"
    first = records_of(site)[0]
    records = [{**first, "id": f"{site}:{index}", "prompt": f"Define {index}."} for index in range(PLANTED[site])]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@dataclass(slots=True)
class Watched:
    """The finished run, and all that was seen of it meanwhile."""

    federation: Federation
    run_id: str
    collector: Collector
    figures: Mapping[str, float]
    seen: dict[str, list[str]] = field(default_factory=dict)
    last: dict[str, Samples] = field(default_factory=dict)


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def template_of_many(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("observed"), write_data=write_data)


@pytest.fixture(scope="module")
def watched(template_of_many: Template, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    with Collector.open() as collector:
        federation = Federation(template_of_many, folder / "work", sites=SMALL.sites)
        places = {"coordinator": f"127.0.0.1:{free_port('127.0.0.1')}"}
        port = int(places["coordinator"].rpartition(":")[2])
        federation.configure_coordinator(metrics={"port": port}, tracing={"endpoint": collector.endpoint})
        for site in SMALL.sites:
            federation.define_site(site, program=str(Path(recording_site.__file__)))
            arguments = federation.processes[site].arguments
            federation.processes.define(site, arguments, WIRE_RECORD_DIR=str(folder / "wire"))
            federation.configure_site(site, log={"format": "json"})
        for site in (TRACED, SHOWN):
            places[site] = f"127.0.0.1:{free_port('127.0.0.1')}"
            federation.configure_site(site, metrics={"port": int(places[site].rpartition(":")[2])})
        federation.configure_site(TRACED, tracing={"endpoint": collector.endpoint})
        try:
            yield watch_run(federation, collector, places, folder / "wire")
        finally:
            federation.end()


def watch_run(federation: Federation, collector: Collector, places: Mapping[str, str], wire: Path) -> Watched:
    """Run to the end, and scrape every half second meanwhile."""
    federation.start()
    federation.wait_until("the sites answer", lambda: all(is_answered(place) for place in places.values()))
    seen: dict[str, list[str]] = {name: [] for name in places}
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.5):
            for name, place in places.items():
                seen[name].append(scrape(place))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        run_id = federation.start_run(SMALL)
        federation.wait_for_end(run_id)
        settled = 'wardround_site_rounds_total{outcome="settled"} ' + f"{len(federation.rounds(run_id))}.0"
        federation.wait_until("the sites settled", lambda: all(settled in seen[site][-1] for site in (TRACED, SHOWN)))
        # What is read from rows is good for a second.
        completed = 'wardround_coordinator_runs{state="COMPLETED"} 1.0'
        federation.wait_until("the end is seen", lambda: completed in seen["coordinator"][-1])
    finally:
        is_over.set()
        looking.join()
    last = {name: samples_of(scrape(place)) for name, place in places.items()}
    listening = {
        site: [
            connection.laddr.port
            for process in (psutil.Process(federation.processes[site].pid),)
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        for site in SMALL.sites
    }
    assert listening[SILENT] == []
    assert listening[SHOWN] == [int(places[SHOWN].rpartition(":")[2])]
    # What is batched is sent at the end.
    for name in SMALL.sites:
        federation.processes.stop(name)
    figures = read_recording(wire).figures
    return Watched(federation, run_id, collector, figures, seen, last)


def is_answered(place: str) -> bool:
    try:
        return bool(scrape(place))
    except OSError:
        return False


def series_of(metrics: tuple[Metric, ...]) -> dict[str, set[str]]:
    return {name: {*metric.label_names, "le"} for metric in metrics for name in metric.series_names}


def test_every_exposed_name_and_label_is_listed(watched: Watched) -> None:
    for name, texts in watched.seen.items():
        assert len(texts) > 5
        listed = series_of(COORDINATOR_METRICS if name == "coordinator" else SITE_METRICS)
        for text in (texts[0], texts[-1]):
            for series, labels in samples_of(text):
                if not series.startswith("process_"):
                    assert series in listed, (name, series)
                    assert {label for label, _ in labels} <= listed[series]


def test_coordinator_counts_what_rest_tells(watched: Watched) -> None:
    found, rounds = watched.last["coordinator"], watched.federation.rounds(watched.run_id)
    n_rounds, n_sites = len(rounds), len(SMALL.sites)
    assert n_rounds >= 2
    assert found["wardround_coordinator_rounds_total", ()] == n_rounds
    assert found["wardround_coordinator_exchanges_total", ()] == n_rounds
    assert found["wardround_coordinator_uploads_total", (("outcome", "accepted"),)] == n_rounds * n_sites
    # What one site says that it sent, once a site: their vectors are of one length.
    sent = watched.last[TRACED]["wardround_site_upload_bytes_total", ()]
    assert found["wardround_coordinator_upload_bytes_total", ()] == n_sites * sent
    assert found["wardround_coordinator_runs", (("state", "COMPLETED"),)] == 1
    assert found["wardround_coordinator_sites", (("state", "ENROLLED"),)] == len(SITES)
    for phase in ("training", "advertising", "sharing", "collecting", "confirming", "revealing", "folding"):
        assert found["wardround_coordinator_phase_seconds_count", (("phase", phase),)] == n_rounds, phase
    seen = {dict(labels)["site_id"] for name, labels in found if name.endswith("site_last_seen_age_seconds")}
    assert set(SMALL.sites) <= seen
    assert found["wardround_coordinator_database_up", ()] == 1
    assert found["wardround_coordinator_audit_rows", ()] >= found["wardround_coordinator_audit_appends_total", ()] > 0
    calls = {dict(labels)["call"] for name, labels in found if name == "wardround_coordinator_calls_total"}
    assert {"PollAssignment", "UploadBlob", "RevealShares", "AdvertiseKeys"} <= calls


def test_site_counts_its_own_rounds(watched: Watched) -> None:
    n_rounds = len(watched.federation.rounds(watched.run_id))
    for site in (TRACED, SHOWN):
        found = watched.last[site]
        assert found["wardround_site_rounds_total", (("outcome", "settled"),)] == n_rounds
        assert found["wardround_site_job_seconds_count", (("outcome", "done"),)] == n_rounds
        assert found["wardround_site_connected", ()] == 1
        assert found["wardround_site_recording", ()] == 1
        assert found["wardround_site_certificate_seconds_left", ()] > 0
        assert found["wardround_site_audit_rows", ()] > 0
        assert found["wardround_site_upload_bytes_total", ()] > 0


def test_no_metric_holds_a_figure_of_a_sites_data(watched: Watched) -> None:
    telling = {name: value for name, value in watched.figures.items() if value not in (0, 1)}
    assert len(telling) >= 3 * len(SMALL.sites)
    planted = {float(PLANTED[site]) for site in SMALL.sites}
    counts = {value for value in telling.values() if value == int(value) and value > 99} | planted
    reals = [value for value in telling.values() if value != int(value)]
    assert reals
    # How often REST was asked, and sites called, passes through every small number; 3 labels say what was asked.
    ours = ("wardround_coordinator_rest_", "wardround_coordinator_call")
    for name, texts in watched.seen.items():
        for text in texts:
            for series, value in samples_of(text).items():
                assert value not in (planted if series[0].startswith(ours) else counts), (name, series)
                assert not any(abs(value - real) <= 1e-6 * abs(real) for real in reals), (name, series)


def test_rest_shows_metrics_to_those_who_may_read_them(watched: Watched) -> None:
    client = watched.federation.client
    # A request is counted once it is answered: the second tells of the first.
    client.text("/metrics")
    text = client.text("/metrics")
    assert "wardround_coordinator_rounds_total" in text
    with pytest.raises(RefusedError):
        watched.federation.lead.text("/metrics")
    routes = {dict(labels)["route"] for name, labels in samples_of(text) if name.endswith("rest_requests_total")}
    assert {"/api/v1/runs/{run_id}", "/api/v1/runs/{run_id}:start", "/metrics"} <= routes
    assert not any(watched.run_id in route for route in routes)


def spans_of_round(watched: Watched, index: int) -> list[CollectedSpan]:
    trace_id = round_trace(watched.run_id, index, 0).trace_id
    return [span for span in watched.collector.spans() if span.trace_id == trace_id]


def test_trace_of_a_round_reaches_from_the_driver_to_the_trainer(watched: Watched) -> None:
    ids = round_trace(watched.run_id, 0, 0)
    watched.federation.wait_until("the round's first span is there", lambda: of_name(watched, SpanName.ROUND))
    spans = spans_of_round(watched, 0)
    (root,) = [span for span in spans if span.name == "round"]
    assert (root.span_id, root.parent_id) == (ids.span_id, 0)
    assert root.links == (run_trace(watched.run_id).trace_id,)
    assert root.attributes["outcome"] == "committed"
    below = {span.name for span in spans if span.parent_id == ids.span_id}
    assert below == {"round.phase", "round.effect", "site.train", "site.step"}
    assert {span.attributes["effect"] for span in spans if span.name == "round.effect"} == {"compute-sum", "fold-round"}
    (train,) = [span for span in spans if span.name == "site.train"]
    assert (train.attributes["site_id"], train.attributes["outcome"]) == (TRACED, "done")
    stages = [span for span in spans if span.name == "trainer.stage"]
    assert "training" in {span.attributes["stage"] for span in stages}
    assert {span.parent_id for span in stages} == {train.span_id}
    steps = {span.span_id: span for span in spans if span.name == "site.step"}
    calls = {str(span.attributes["method"]): span for span in spans if span.name == "site.call"}
    # A call's span is the coordinator's, and hangs below the site's step: over the wire went two numbers.
    assert {"AdvertiseKeys", "ShareKeys", "UploadBlob", "ConfirmSurvivors", "RevealShares"} <= set(calls)
    for method, call in calls.items():
        assert call.parent_id in steps or (method, call.parent_id) == ("ReportProgress", train.span_id)
        assert call.resource["service.name"] == "wardround-coordinator"
        assert call.attributes["site_id"] == TRACED


def of_name(watched: Watched, name: SpanName) -> list[CollectedSpan]:
    return [span for span in watched.collector.spans() if span.name == name.value]


def test_request_that_started_the_run_is_linked_to_it(watched: Watched) -> None:
    started = [span for span in of_name(watched, SpanName.REST) if str(span.attributes["route"]).endswith(":start")]
    assert [span.links for span in started] == [(run_trace(watched.run_id).trace_id,)]


def test_site_that_tells_no_traces_is_in_none_of_its_own(watched: Watched) -> None:
    for span in watched.collector.spans():
        if span.resource["service.name"] == "wardround-site":
            assert span.attributes["site_id"] == TRACED
        assert set(span.attributes) <= set(SPAN_ATTRIBUTES)
        assert set(span.resource) == {"service.name", "service.version"}


def test_no_span_holds_a_figure_of_a_sites_data(watched: Watched) -> None:
    telling = {name: value for name, value in watched.figures.items() if value not in (0, 1)}
    counts = {value for value in telling.values() if value == int(value) and value > 99}
    counts |= {float(PLANTED[site]) for site in SMALL.sites}
    bodies = b"".join(watched.collector.bodies)
    for value in telling.values():
        assert struct.pack("<d", value) not in bodies
    for span in watched.collector.spans():
        for value in span.attributes.values():
            assert not isinstance(value, float)
            assert value not in counts


@pytest.mark.parametrize("name", ["coordinator", *SMALL.sites])
def test_log_lines_hold_the_listed_keys_alone(watched: Watched, name: str) -> None:
    lines = [json.loads(line) for line in watched.federation.processes[name].log_text().splitlines() if line[:1] == "{"]
    lines = [line for line in lines if "event" in line]
    assert len(lines) >= 2
    for line in lines:
        assert set(line) <= set(LOG_FIELDS), set(line) - set(LOG_FIELDS)
    about = [line for line in lines if line.get("run_id") == watched.run_id]
    assert about or name == "coordinator"
    traces = {line["trace_id"] for line in lines if "trace_id" in line}
    if name == TRACED:
        assert f"{round_trace(watched.run_id, 0, 0).trace_id:032x}" in traces
    elif name != "coordinator":
        assert not traces


def test_second_process_with_the_same_port_goes_on_without_metrics(watched: Watched) -> None:
    federation = watched.federation
    federation.define_coordinator(name="second", roles="driver")
    federation.processes.start("second")
    try:
        log = federation.processes["second"].log_text
        federation.wait_until("it says that the port is taken", lambda: "metrics_port_taken" in log())
        federation.wait_until("and drives", lambda: "driver_started" in log())
    finally:
        federation.processes.stop("second")


def test_commands_of_the_runbooks_answer(watched: Watched) -> None:
    """What docs/runbooks tell people to look with, typed at a coordinator that runs and at a site that does not."""
    federation, run_id = watched.federation, watched.run_id
    config = str(federation.coordinator_dir / "coordinator.yaml")
    export = str(federation.folder / "events.jsonl")
    for words in (
        ("sites", "list"),
        ("sites", "show", SHOWN),
        ("runs", "list"),
        ("runs", "show", run_id),
        ("rounds", "list", run_id),
        ("audit", "export", export),
        ("audit", "verify", export),
        ("--version",),
        ("tokens", "create", "--label", "prometheus", "--scope", "metrics:read", "--days", "366"),
    ):
        assert federation.call_admin(*words)
    for module, words in (
        ("coordinator", ("doctor", "--config", config)),
        ("coordinator", ("doctor", "--live", "--config", config)),
        ("coordinator", ("config", "check", "--config", config)),
        ("coordinator", ("ca", "show", "--config", config)),
        ("site_agent", ("--state-dir", str(federation.site_dir(SHOWN)), "status")),
        ("site_agent", ("--state-dir", str(federation.site_dir(SHOWN)), "identity", "show")),
        ("site_agent", ("--state-dir", str(federation.site_dir(SHOWN)), "doctor", "--firewall")),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    # A stopped agent is not well, and says so.
    for words in (("doctor", "--live"), ("doctor",)):
        done = subprocess.run(
            [sys.executable, "-m", "site_agent", "--state-dir", str(federation.site_dir(SHOWN)), *words],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout + done.stderr
    # Suspended, let in again, and gone for good: as the runbook has it.
    federation.call_admin("sites", "suspend", SILENT, "--reason", "looked into")
    federation.call_admin("sites", "resume", SILENT)
    federation.call_admin("sites", "revoke", SILENT, "--reason", "keys copied")
    shown = json.loads(federation.call_admin("--json", "sites", "show", SILENT))
    assert (shown["state"], shown["reason"]) == ("REVOKED", "keys copied")
