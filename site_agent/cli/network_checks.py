"""``doctor``'s look at the way to the coordinator: the proxy, TCP, TLS, HTTP/2, the answer, and the way over HTTP/1.1.

One line a step, in the order in which a connection takes them. Where HTTP/2 is broken and HTTP/1.1 gets through, the
site can take part, and the broken step is a warning.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import cast

from site_agent.cli.check_results import CheckResult, Health
from site_agent.enrolment.identity_file import load_identity
from site_agent.errors import CoordinatorRefusedError, LinkError
from site_agent.folder import SiteFolder
from site_agent.link.channel import CallChannel, open_channel
from site_agent.link.client import CoordinatorClient
from site_agent.link.http1_channel import Http1Channel
from site_agent.link.probe import Step, Way, probe_way
from site_agent.settings import load_settings
from site_agent.way_out import WayOut, find_way_out

_NO_FALLBACK = (
    "no HTTP/1.1 address is known: this site enrolled with an earlier version, or its coordinator offers none",
    "Only needed where a middlebox breaks HTTP/2: then set coordinator.fallback_address in site.yaml (HOST:8446).",
)


def network_checks(folder: SiteFolder) -> Iterator[CheckResult]:
    """The steps to the gateway, the coordinator's answer, and the way over HTTP/1.1.

    Raises:
        WardroundError: settings, identity, keys or the proxy's credentials cannot be used.
    """
    ways = find_way_out(load_settings(folder.root), load_identity(folder), environment=os.environ)
    yield CheckResult(name="route", health=Health.OK, message=_route(ways.gateway))
    steps = probe_way(ways.gateway, is_http2=True)
    grpc = asyncio.run(_ask_grpc(ways.gateway)) if all(step.fault is None for step in steps) else None
    fallback = () if ways.fallback is None else _probe_fallback(ways.fallback)
    has_fallback = bool(fallback) and all(line.health is Health.OK for line in fallback)
    for step in steps:
        yield _line(f"way: {step.name}", step, broken=Health.WARNING if has_fallback else Health.FAILED)
    yield _coordinator(ways, grpc, has_fallback=has_fallback)
    if ways.fallback is None:
        message, advice = _NO_FALLBACK
        is_needed = grpc is None
        yield CheckResult(
            name="fallback", health=Health.WARNING if is_needed else Health.OK, message=message, advice=advice
        )
    yield from fallback


def _route(way: Way) -> str:
    if way.proxy is None:
        return f"straight to {way.address}, without a proxy"
    shown = "with credentials" if way.proxy.credentials is not None else "without credentials"
    return f"to {way.address} through the proxy {way.proxy.address}, {shown}"


def _line(name: str, step: Step, *, broken: Health) -> CheckResult:
    if step.fault is None:
        return CheckResult(name=name, health=Health.OK, message=step.message)
    return CheckResult(name=name, health=broken, message=step.message, advice=step.advice)


def _coordinator(ways: WayOut, grpc: LinkError | str | None, *, has_fallback: bool) -> CheckResult:
    if isinstance(grpc, str):
        return CheckResult(name="coordinator", health=Health.OK, message=grpc)
    if isinstance(grpc, CoordinatorRefusedError):
        return CheckResult(name="coordinator", health=Health.FAILED, message=str(grpc), advice="Ask its admin.")
    if has_fallback:
        message = f"{ways.gateway.address} is not reached by gRPC; the agent uses HTTP/1.1"
        return CheckResult(name="coordinator", health=Health.OK, message=message)
    message = f"{ways.gateway.address} is not reached" if grpc is None else str(grpc)
    return CheckResult(name="coordinator", health=Health.FAILED, message=message, advice="Mend the lines above it.")


async def _ask_grpc(way: Way) -> LinkError | str:
    """One call as this site: admitted, or the error."""
    channel = open_channel(way.address, way.identity, proxy=way.proxy)
    try:
        await CoordinatorClient(channel, agent_version="doctor").list_pending()
    except LinkError as error:
        return error
    finally:
        await channel.close()
    return f"{way.address} admits this site"


def _probe_fallback(way: Way) -> tuple[CheckResult, ...]:
    for step in probe_way(way, is_http2=False):
        if step.fault is not None:
            message = f"{way.address} is not reached at the step {step.name}: {step.message}"
            advice = f"{step.advice} Only needed where HTTP/2 is broken."
            return (CheckResult(name="fallback", health=Health.WARNING, message=message, advice=advice),)
    return (asyncio.run(_ask_http1(way)),)


async def _ask_http1(way: Way) -> CheckResult:
    channel = Http1Channel(way.address, way.identity, proxy=way.proxy)
    try:
        await CoordinatorClient(cast("CallChannel", channel), agent_version="doctor").list_pending()
    except LinkError as error:
        return CheckResult(name="fallback", health=Health.WARNING, message=str(error), advice="Ask its admin.")
    finally:
        await channel.close()
    return CheckResult(name="fallback", health=Health.OK, message=f"{way.address} admits this site over HTTP/1.1")
