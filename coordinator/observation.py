"""What operators see of a process: its meter, what is read at a scrape, their listener. Of the composition root."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from datetime import datetime

import structlog

from coordinator.api.main import program_version
from coordinator.errors import ListenerError
from coordinator.installation import Installation, Keys
from coordinator.metrics.committed import CommittedCounts
from coordinator.metrics.scraped import Scraped, ScrapeDesk
from coordinator.services.context import EngineContext
from coordinator.services.resources import Resources
from fl_protocol.pki.tls import certificate_from_pem
from fl_protocol.telemetry.meter import MetricsListener
from fl_protocol.telemetry.tracing import NO_TRACING, Tracing, TracingOptions, open_tracing

_log = structlog.get_logger("coordinator.app")
_LOOPBACK = ("127.", "::1", "localhost")


def observe(
    installation: Installation,
    *,
    resources: Resources,
    engine: EngineContext,
    keys: Keys,
    roles: tuple[str, ...],
    last_turn_at: Callable[[], datetime | None],
) -> MetricsListener | None:
    """Count from now on, and open the operators' listener; None where it is turned off, or its port is taken.

    A process is more than its metrics: where another one of this machine has the port, it says so and goes on.

    Raises:
        ListenerError: its port cannot be bound.
    """
    meter = resources.meter
    resources.db.watch(CommittedCounts(meter, resources.tracing))
    desk = ScrapeDesk(
        Scraped(
            db=resources.db,
            blobs=resources.blobs,
            directory=installation.directory,
            clock=resources.clock,
            uploads=engine.uploads,
            certificates=lambda: _certificates(resources, keys),
            last_turn_at=last_turn_at,
            version=program_version(),
            roles=",".join(roles),
        )
    )
    meter.read_at_scrape(desk.read)
    meter.add_process()
    settings = installation.settings.metrics
    if settings.port is None:
        return None
    address = f"{settings.host}:{settings.port}"
    try:
        listener = meter.serve(host=settings.host, port=settings.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "give each process of this machine a port of its own: WARDROUND_METRICS__PORT"
            _log.warning("metrics_port_taken", address=address, advice=advice)
            return None
        raise ListenerError(
            "the port for metrics cannot be bound; see metrics.host and metrics.port",
            listener="metrics",
            address=address,
        ) from error
    if not settings.host.startswith(_LOOPBACK):
        _log.warning("metrics_listen_openly", address=listener.address)
    return listener


def tracing_of(installation: Installation) -> Tracing:
    """Where spans go, by the settings; nowhere by default.

    Raises:
        TracingUnavailableError: they are to go somewhere, and OpenTelemetry is not installed.
    """
    settings = installation.settings.tracing
    if settings.endpoint is None:
        return NO_TRACING
    _log.info("tracing_on", url=settings.endpoint)
    return open_tracing(
        TracingOptions(
            endpoint=settings.endpoint,
            service="wardround-coordinator",
            version=program_version(),
            ca_file=None if settings.ca_file is None else installation.directory / settings.ca_file,
        )
    )


def _certificates(resources: Resources, keys: Keys) -> Mapping[str, datetime]:
    """When the certificates end that nobody renews by himself; the authority may have changed since the start."""
    issuing = resources.authority.slots.issuing
    return {
        "root": issuing.root.not_valid_after_utc,
        "issuer": issuing.certificate.not_valid_after_utc,
        "enrolment": certificate_from_pem(keys.enrolment.certificate_pem).not_valid_after_utc,
    }
