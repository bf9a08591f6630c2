"""The checks of the way to the coordinator, made of walks: route, DNS, connection, TLS, HTTP/2.

Where HTTP/2 is broken and HTTP/1.1 gets through, the site can take part, and the broken step is a warning; so is
whatever is wrong with a listener that is needed only now and then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found
from site_agent.doctor.endpoints import Endpoint, Listener
from site_agent.doctor.resolving import AddressKind
from site_agent.doctor.scene import Scene
from site_agent.doctor.walks import Walk
from site_agent.link.faults import ADVICE, MEANING, PathFault

FAMILY = "network"


def fault_outcome(fault: PathFault, health: Health = Health.FAILED) -> Outcome:
    """A fault of the way as an outcome: its word is the code."""
    return Outcome(code=fault.value, health=health, means=MEANING[fault], advice=ADVICE[fault])


def _fault_outcomes(*faults: PathFault) -> tuple[Outcome, ...]:
    return tuple(fault_outcome(fault) for fault in faults)


def severity(walk: Walk, walks: tuple[Walk, ...], *, is_enrolled: bool) -> Health:
    """How bad it is that this way ends: what can do without it is only warned of.

    An enrolled site needs the gateway, a new one the enrolment listener; each over either transport. What was only
    guessed may be elsewhere.
    """
    needed = Listener.GATEWAY if is_enrolled else Listener.ENROLMENT
    second = Listener.GATEWAY_HTTP1 if is_enrolled else Listener.ENROLMENT_HTTP1
    listener = walk.endpoint.listener
    # The agent goes only where it was told to; enrolment tries the usual port by itself.
    has_other = any(
        one.is_open and not (is_enrolled and one.endpoint.is_guessed)
        for one in walks
        if one.endpoint.listener is second
    )
    if walk.endpoint.is_guessed and not (listener is needed and is_enrolled):
        return Health.WARNING
    if listener is needed:
        return Health.WARNING if has_other and breaks_http2(walk) else Health.FAILED
    # A gateway that somebody typed is what they ask about.
    return Health.FAILED if listener is Listener.GATEWAY else Health.WARNING


def breaks_http2(walk: Walk | None) -> bool:
    """Whether the way ends at HTTP/2, so that HTTP/1.1 may lead there."""
    return walk is not None and walk.end is not None and walk.end.fault is PathFault.HTTP2_BROKEN


def _of(endpoint: Endpoint) -> dict[str, str]:
    return {"listener": endpoint.listener.value, "address": endpoint.address}


ROUTE_DIRECT = Outcome(code="route-direct", health=Health.OK, means="No proxy is used.")
ROUTE_PROXY = Outcome(code="route-proxy", health=Health.OK, means="A proxy is used, and is the way out.")
ROUTE_PROXY_NEEDLESS = Outcome(
    code="route-proxy-needless",
    health=Health.NOTE,
    means="A proxy is used, and the coordinator is reached without it as well.",
    advice="Where the hospital permits it, coordinator.proxy: none leaves one thing out that may fail.",
)
ROUTE_PROXY_MISSED = Outcome(
    code="route-proxy-missed",
    health=Health.WARNING,
    means="The direct way is closed, and the environment names a proxy that is not used for it.",
    advice="Set coordinator.proxy to that proxy (or https_proxy), if it is the way out of this network.",
)


def _route(scene: Scene) -> Iterator[CheckResult]:
    for proxied in (True, False):
        walks = [walk for walk in scene.walks() if (walk.endpoint.proxy is not None) is proxied]
        if walks:
            yield _proxied(scene, walks) if proxied else _direct(scene, walks)


def _proxied(scene: Scene, walks: list[Walk]) -> CheckResult:
    proxy = walks[0].endpoint.proxy
    assert proxy is not None, "the walks were chosen by it"
    shown = "with credentials" if proxy.credentials is not None else "without credentials"
    message = f"through the proxy {proxy.address}, {shown}, from {_source(scene)}"
    if any(walk.is_open_without_proxy for walk in walks):
        return found("route", ROUTE_PROXY_NEEDLESS, f"{message}; the direct way is open too", proxy=proxy.address)
    return found("route", ROUTE_PROXY, f"{message}; the direct way is closed", proxy=proxy.address)


def _source(scene: Scene) -> str:
    if scene.asked.proxy is not None:
        return "the command line"
    return "the environment (https_proxy)" if scene.settings().coordinator.proxy is None else "coordinator.proxy"


def _direct(scene: Scene, walks: list[Walk]) -> CheckResult:
    addresses = ", ".join(dict.fromkeys(walk.endpoint.host for walk in walks))
    message = f"straight to {addresses}, without a proxy"
    named = next(
        (
            f"{name}={'(set)' if '@' in value else value}"
            for name, value in sorted(scene.environment.items())
            if name.lower() in {"https_proxy", "http_proxy", "all_proxy"} and value
        ),
        None,
    )
    closed = {PathFault.TIMED_OUT, PathFault.REFUSED, PathFault.UNREACHABLE, PathFault.HOST_UNKNOWN}
    if named is None or not all(walk.end is not None and walk.end.fault in closed for walk in walks):
        return found("route", ROUTE_DIRECT, message)
    why = (
        "coordinator.proxy says none" if scene.settings().coordinator.proxy else "no_proxy, or another variable's name"
    )
    return found("route", ROUTE_PROXY_MISSED, f"{message}; the environment has {named}, not used here ({why})")


DNS_RESOLVES = Outcome(code="dns-resolves", health=Health.OK, means="The name has public addresses.")
DNS_PRIVATE = Outcome(
    code="dns-private",
    health=Health.NOTE,
    means="The name has addresses of a private network here: another view of DNS than the world's, or a local name.",
    advice=(
        "Right where the coordinator is inside, or reached by a VPN. Otherwise the hospital's DNS answers for the "
        "world's (split horizon): compare with the coordinator's admin."
    ),
)
DNS_ITSELF = Outcome(
    code="dns-itself",
    health=Health.WARNING,
    means="The name points at this machine itself: an entry of /etc/hosts, or a filter that blocks by DNS.",
    advice="Look at /etc/hosts; ask those who run DNS whether a filter (sinkhole) answers for this name.",
)
DNS_ADDRESS = Outcome(code="dns-address", health=Health.NOTE, means="An address was given; DNS is not asked.")
DNS_BY_PROXY = Outcome(
    code="dns-by-proxy", health=Health.NOTE, means="The proxy looks the name up; whether it is known here matters not."
)


def _dns(scene: Scene) -> Iterator[CheckResult]:
    walks = scene.walks()
    for host in dict.fromkeys(walk.endpoint.host for walk in walks):
        of_host = [walk for walk in walks if walk.endpoint.host == host]
        is_needed = any(severity(walk, walks, is_enrolled=scene.is_enrolled) is Health.FAILED for walk in of_host)
        yield _looked_up(of_host[0], host, Health.FAILED if is_needed else Health.WARNING)


def _looked_up(walk: Walk, host: str, health: Health) -> CheckResult:
    resolved = walk.resolved
    if resolved.is_literal:
        return found("dns", DNS_ADDRESS, f"{host} is an address", host=host)
    if walk.endpoint.proxy is not None:
        known = f"{', '.join(resolved.addresses)} here" if resolved.addresses else "not known here"
        return found("dns", DNS_BY_PROXY, f"the proxy looks {host} up; it is {known}", host=host)
    if resolved.fault is not None:
        said = "no DNS server answers for it" if resolved.fault is PathFault.DNS_SILENT else "DNS knows no such name"
        return found("dns", fault_outcome(resolved.fault, health), f"{host}: {said}", host=host)
    message = f"{host} is {', '.join(resolved.addresses)}"
    facts = {"host": host, "addresses": ", ".join(resolved.addresses)}
    match resolved.kind:
        case AddressKind.ITSELF if host.rstrip(".").lower() != "localhost":
            return found("dns", DNS_ITSELF, message, **facts)
        case AddressKind.PRIVATE:
            return found("dns", DNS_PRIVATE, f"{message}, of a private network", **facts)
        case _:
            return found("dns", DNS_RESOLVES, message, **facts)


CONNECTION_OPEN = Outcome(code="connection-open", health=Health.OK, means="TCP stands, or the proxy built its tunnel.")


def _connection(scene: Scene) -> Iterator[CheckResult]:
    yield from _steps(scene, "connection", {"tcp": CONNECTION_OPEN, "proxy": CONNECTION_OPEN})


TLS_GOOD = Outcome(
    code="tls-good", health=Health.OK, means="The certificate is of the pinned root, or is the one that the code names."
)
TLS_UNPINNED = Outcome(
    code="tls-unpinned",
    health=Health.NOTE,
    means="It looks like an enrolment listener's certificate; without the code nobody can be sure.",
    advice="Give --code from the invitation, or compare the shown digits with its end by eye.",
)

TLS_BEFORE_ROOT = Outcome(
    code="tls-before-root",
    health=Health.NOTE,
    means="It looks like a gateway's certificate; whether it is of the coordinator's root, enrolment tells.",
)
TLS_OWN = Outcome(
    code="tls-own",
    health=Health.NOTE,
    means="An enrolment listener's own certificate; whoever recovers there proves both sides by their signing keys.",
)


def _tls(scene: Scene) -> Iterator[CheckResult]:
    yield from _steps(scene, "tls", {"tls": TLS_GOOD})


HTTP2_GOOD = Outcome(code="http2-good", health=Health.OK, means="HTTP/2 is offered, accepted and spoken.")


def _http2(scene: Scene) -> Iterator[CheckResult]:
    yield from _steps(scene, "http/2", {"http/2": HTTP2_GOOD})


def _steps(scene: Scene, name: str, goods: Mapping[str, Outcome]) -> Iterator[CheckResult]:
    """What this step came to on each walk that went so far."""
    walks = scene.walks()
    for walk in walks:
        for step in walk.steps:
            if step.name not in goods:
                continue
            if step.fault in {PathFault.HOST_UNKNOWN, PathFault.DNS_SILENT}:
                # Told by the check of DNS already.
                continue
            message = f"{walk.endpoint}: {step.message}"
            if step.fault is not None:
                outcome = fault_outcome(step.fault, severity(walk, walks, is_enrolled=scene.is_enrolled))
            else:
                outcome = goods[step.name] if step.name != "tls" else _trusted(walk, is_enrolled=scene.is_enrolled)
            yield found(name, outcome, message, **_of(walk.endpoint))


def _trusted(walk: Walk, *, is_enrolled: bool) -> Outcome:
    if walk.is_pinned:
        return TLS_GOOD
    if walk.endpoint.listener in {Listener.GATEWAY, Listener.GATEWAY_HTTP1}:
        return TLS_BEFORE_ROOT
    return TLS_OWN if is_enrolled else TLS_UNPINNED


CHECKS = (
    Check(
        name="route",
        family=FAMILY,
        looks_at="which proxy is used, who says so, and whether it is needed",
        outcomes=(ROUTE_DIRECT, ROUTE_PROXY, ROUTE_PROXY_NEEDLESS, ROUTE_PROXY_MISSED),
        run=_route,
    ),
    Check(
        name="dns",
        family=FAMILY,
        looks_at="what the coordinator's name is here",
        outcomes=(
            DNS_RESOLVES,
            DNS_PRIVATE,
            DNS_ITSELF,
            DNS_ADDRESS,
            DNS_BY_PROXY,
            *_fault_outcomes(PathFault.HOST_UNKNOWN, PathFault.DNS_SILENT),
        ),
        run=_dns,
    ),
    Check(
        name="connection",
        family=FAMILY,
        looks_at="TCP to each listener, or the proxy's CONNECT",
        outcomes=(
            CONNECTION_OPEN,
            *_fault_outcomes(
                PathFault.REFUSED,
                PathFault.TIMED_OUT,
                PathFault.UNREACHABLE,
                PathFault.PROXY_UNKNOWN,
                PathFault.PROXY_TIMED_OUT,
                PathFault.PROXY_UNREACHABLE,
                PathFault.PROXY_CREDENTIALS,
                PathFault.PROXY_CREDENTIALS_REFUSED,
                PathFault.PROXY_SCHEME,
                PathFault.PROXY_FORBIDS,
                PathFault.PROXY_FAILED,
                PathFault.PROXY_SILENT,
            ),
        ),
        run=_connection,
    ),
    Check(
        name="tls",
        family=FAMILY,
        looks_at="whose certificate is shown, and by whom it was issued",
        outcomes=(
            TLS_GOOD,
            TLS_UNPINNED,
            TLS_BEFORE_ROOT,
            TLS_OWN,
            *_fault_outcomes(
                PathFault.TLS_INTERCEPTED,
                PathFault.TLS_ENDS,
                PathFault.TUNNEL_ENDS,
                PathFault.CERTIFICATE_WRONG,
                PathFault.HTTP2_BROKEN,
                PathFault.ANSWER_FOREIGN,
            ),
        ),
        run=_tls,
    ),
    Check(
        name="http/2",
        family=FAMILY,
        looks_at="whether HTTP/2, which gRPC needs, gets through behind TLS",
        outcomes=(
            HTTP2_GOOD,
            *_fault_outcomes(PathFault.HTTP2_BROKEN, PathFault.ANSWER_FOREIGN, PathFault.SITE_REFUSED),
        ),
        run=_http2,
    ),
)
