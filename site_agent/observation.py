"""What the hospital's own people see of a running agent: its meter and their listener. Part of the composition root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from fl_protocol.clock import SystemClock
from fl_protocol.telemetry import site_metrics as metrics
from fl_protocol.telemetry.meter import Meter
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing, TracingOptions, open_tracing
from site_agent.db.tx import SiteDb
from site_agent.errors import SiteAgentError
from site_agent.metrics.scraped import SiteScrape
from site_agent.settings import SiteSettings
from site_agent.supervision.status_board import StatusBoard

log = structlog.get_logger(__name__)


class MetricsPortError(SiteAgentError):
    """The listener for metrics cannot be opened."""

    code = "metrics-port"


@contextmanager
def observed(settings: SiteSettings, meter: Meter, *, board: StatusBoard, db: SiteDb, version: str) -> Iterator[None]:
    """Count, and show the numbers where ``metrics.port`` is set, as long as the block runs.

    Raises:
        MetricsPortError: the port cannot be bound.
    """
    _watch_writes(db, board, meter)
    place = settings.metrics
    if place.port is None:
        yield
        return
    scrape = SiteScrape(board=board, db=db, folder=settings.folder, clock=SystemClock(), version=version)
    meter.read_at_scrape(scrape.read)
    meter.add_process()
    try:
        listener = meter.serve(host=place.host, port=place.port)
    except OSError as error:
        message = "the port for metrics cannot be bound; is it in use? Set metrics.port in site.yaml, or take it out"
        raise MetricsPortError(message, address=f"{place.host}:{place.port}") from error
    log.info("metrics_listening", address=listener.address)
    try:
        yield
    finally:
        listener.close()


@contextmanager
def traced(settings: SiteSettings, *, version: str) -> Iterator[Tracing]:
    """Tell spans where ``tracing.endpoint`` says, as long as the block runs; nowhere by default.

    Raises:
        TracingUnavailableError: OpenTelemetry is not installed.
    """
    place = settings.tracing
    if place.endpoint is None:
        yield NO_TRACING
        return
    ca_file = None if place.ca_file is None else settings.folder.root / place.ca_file
    options = TracingOptions(endpoint=place.endpoint, service="wardround-site", version=version, ca_file=ca_file)
    tracing = open_tracing(options)
    log.info("tracing_on", url=place.endpoint)
    try:
        yield tracing
    finally:
        tracing.close()


def _watch_writes(db: SiteDb, board: StatusBoard, meter: Meter) -> None:
    listed = metrics.AUDIT_FAILURES.labels[0].values

    def tell(code: str | None) -> None:
        board.recording(code)
        if code is not None:
            meter.count(metrics.AUDIT_FAILURES, code if code in listed else "other")

    db.watch_writes(tell)
