"""The checks of what is reached: running processes, ports, the addresses that sites are told, the identity provider."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator

from coordinator.ca.authority import GATEWAY_SERVER_NAME
from coordinator.doctor.live import ask_live
from coordinator.doctor.scene import Scene
from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found

FAMILY = "what is reached"
_TIMEOUT_S = 5.0

PROCESS_WELL = Outcome(code="process-well", health=Health.OK, means="The processes of this folder are well.")
PROCESS_NONE = Outcome(code="process-none", health=Health.NOTE, means="No coordinator of this folder runs here now.")
PROCESS_UNWELL = Outcome(
    code="process-unwell",
    health=Health.FAILED,
    means="A process of this folder does not answer, or a part of it is not at work.",
    advice="Read its log; mend what the other lines name; then start it again.",
)


def _process(scene: Scene) -> Iterator[CheckResult]:
    answer = ask_live(scene.installation.directory, scene.serve_file)
    if answer.code == "not-running":
        yield found("process", PROCESS_NONE, "no coordinator of this folder runs here")
    else:
        yield found("process", PROCESS_WELL if answer.is_well else PROCESS_UNWELL, answer.sentence)


PORT_FREE = Outcome(code="port-free", health=Health.OK, means="The port can be bound.")
PORT_IN_USE = Outcome(
    code="port-in-use", health=Health.OK, means="A coordinator of this folder runs; the port is its own."
)
PORT_CHOSEN = Outcome(code="port-chosen", health=Health.NOTE, means="Port 0: chosen at each start.")
PORT_OFF = Outcome(
    code="port-off",
    health=Health.NOTE,
    means="The listener is turned off (null).",
    advice="Without the listeners over HTTP/1.1, sites whose network breaks HTTP/2 cannot take part.",
)
PORT_TAKEN = Outcome(
    code="port-taken",
    health=Health.FAILED,
    means="The port cannot be bound: another program has it, or it is below 1024, or the host is not this machine's.",
    advice="Set another port or host in the configuration, or end what listens there ('ss -ltnp').",
)


def _ports(scene: Scene) -> Iterator[CheckResult]:
    settings = scene.installation.settings
    for name, host, port in (
        ("rest", settings.rest.host, settings.rest.port),
        ("gateway", settings.gateway.host, settings.gateway.port),
        ("enrolment", settings.enrolment.host, settings.enrolment.port),
        ("gateway over HTTP/1.1", settings.gateway.host, settings.gateway.http1_port),
        ("enrolment over HTTP/1.1", settings.enrolment.host, settings.enrolment.http1_port),
        ("metrics", settings.metrics.host, settings.metrics.port),
    ):
        if port is None:
            yield found("ports", PORT_OFF, f"{name}: turned off", listener=name)
        elif port == 0:
            yield found("ports", PORT_CHOSEN, f"{name}: chosen at each start", listener=name)
        elif scene.is_running:
            yield found(
                "ports", PORT_IN_USE, f"{name}: {host}:{port}, a coordinator of this folder runs", listener=name
            )
        else:
            yield _bind(name, host, port)


def _bind(name: str, host: str, port: int) -> CheckResult:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"{name}: {host}:{port} cannot be bound ({error.strerror})"
            return found("ports", PORT_TAKEN, message, listener=name)
    return found("ports", PORT_FREE, f"{name}: {host}:{port} is free", listener=name)


ADDRESS_REACHED = Outcome(
    code="address-reached", health=Health.OK, means="The address that sites are told leads to this coordinator."
)
ADDRESS_LOCAL = Outcome(
    code="address-local",
    health=Health.NOTE,
    means="Sites are told an address of this machine only: right for a demo, and for nothing else.",
    advice="Set gateway.advertise, gateway.http1_advertise and enrolment.advertise to HOST:PORT as sites dial them.",
)
ADDRESS_NOWHERE = Outcome(
    code="address-nowhere",
    health=Health.FAILED,
    means="A listener is bound to all addresses and nobody said which one sites are to dial.",
    advice="Set gateway.advertise, gateway.http1_advertise and enrolment.advertise to HOST:PORT as sites dial them.",
)
ADDRESS_UNKNOWN = Outcome(
    code="address-unknown",
    health=Health.FAILED,
    means="The name in an advertised address does not resolve here.",
    advice="Ask for the name in DNS; sites have to resolve it as well, where they use no proxy.",
)
ADDRESS_UNREACHED = Outcome(
    code="address-unreached",
    health=Health.WARNING,
    means="The coordinator runs, and its advertised address does not answer from here.",
    advice=(
        "See that the firewall or load balancer forwards the port, untouched, to this machine. Some networks cannot be "
        "reached from inside by their outer address: then try from outside ('wardround-site doctor --coordinator')."
    ),
)
ADDRESS_FOREIGN = Outcome(
    code="address-foreign",
    health=Health.FAILED,
    means="Another certificate than this coordinator's is shown at its advertised address.",
    advice="Something in front ends TLS: let it pass TCP through to the gateway and the enrolment listener unopened.",
)
ADDRESS_UNTRIED = Outcome(
    code="address-untried", health=Health.NOTE, means="Nothing runs here now, so the address was not tried."
)


def _addresses(scene: Scene) -> Iterator[CheckResult]:
    settings = scene.installation.settings
    gateway, enrolment = settings.gateway, settings.enrolment
    told = [
        ("gateway", gateway.advertise, gateway.host, gateway.port),
        ("enrolment", enrolment.advertise, enrolment.host, enrolment.port),
    ]
    if gateway.http1_port is not None:
        told.append(("gateway over HTTP/1.1", gateway.http1_advertise, gateway.host, gateway.http1_port))
    for name, advertised, host, port in told:
        yield _address(scene, name, advertised, bound=(host, port))


def _address(scene: Scene, name: str, advertised: str | None, *, bound: tuple[str, int]) -> CheckResult:
    address = advertised or f"{bound[0]}:{bound[1]}"
    host = address.rpartition(":")[0].strip("[]")
    message = f"{name}: sites are told {address}"
    if _is_anywhere(host):
        return found("addresses", ADDRESS_NOWHERE, message, listener=name)
    if _is_loopback(host):
        return found("addresses", ADDRESS_LOCAL, message, listener=name)
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return found("addresses", ADDRESS_UNKNOWN, f"{message}, a name that does not resolve", listener=name)
    if not scene.is_running:
        return found("addresses", ADDRESS_UNTRIED, f"{message}; not tried", listener=name)
    return _reach(scene, name, (host, int(address.rpartition(":")[2])), message)


def _reach(scene: Scene, name: str, place: tuple[str, int], message: str) -> CheckResult:
    try:
        keys = scene.installation.load_keys()
    except WardroundError:
        # Told by the check of the keys.
        return found("addresses", ADDRESS_UNTRIED, f"{message}; not tried without keys", listener=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusted = keys.enrolment.certificate_pem if name == "enrolment" else keys.authority.trusted_pem
    context.load_verify_locations(cadata=trusted.decode("ascii"))
    # Only whose certificate it is matters; the name in the enrolment listener's is its own.
    context.check_hostname = False
    context.set_alpn_protocols(["http/1.1" if name.endswith("HTTP/1.1") else "h2"])
    try:
        with (
            socket.create_connection(place, timeout=_TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=GATEWAY_SERVER_NAME),
        ):
            return found("addresses", ADDRESS_REACHED, f"{message}, which leads here", listener=name)
    except ssl.SSLCertVerificationError as error:
        detail = f"{message}, where another certificate is shown ({error.verify_message})"
        return found("addresses", ADDRESS_FOREIGN, detail, listener=name)
    except OSError as error:
        detail = f"{message}, which does not answer from here ({error.strerror or 'no answer in time'})"
        return found("addresses", ADDRESS_UNREACHED, detail, listener=name)


def _is_anywhere(host: str) -> bool:
    return host in {"", "0.0.0.0", "::"}  # noqa: S104 # what is compared, not bound


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


METRICS_LOCAL = Outcome(code="metrics-local", health=Health.OK, means="The metrics are told on this machine only.")
METRICS_OFF = Outcome(code="metrics-off", health=Health.NOTE, means="The listener for metrics is turned off.")
METRICS_OPEN = Outcome(
    code="metrics-open",
    health=Health.NOTE,
    means="Other machines may read the metrics: plain HTTP, and nobody is asked who they are.",
    advice="Let only the monitoring reach that port (firewall, NetworkPolicy).",
)


def _metrics(scene: Scene) -> Iterator[CheckResult]:
    metrics = scene.installation.settings.metrics
    if metrics.port is None:
        yield found("metrics", METRICS_OFF, "turned off")
    elif _is_loopback(metrics.host):
        yield found("metrics", METRICS_LOCAL, f"on {metrics.host}:{metrics.port}")
    else:
        yield found("metrics", METRICS_OPEN, f"on {metrics.host}:{metrics.port}, for other machines as well")


PROVIDER_GOOD = Outcome(code="provider-good", health=Health.OK, means="The identity provider answers with usable keys.")
PROVIDER_UNREACHABLE = Outcome(
    code="provider-unreachable",
    health=Health.FAILED,
    means="The identity provider does not answer, or not as one.",
    advice="Look at oidc.issuer, oidc.ca_file and oidc.keys_host, and whether it can be reached from here.",
)
PROVIDER_KEYLESS = Outcome(
    code="provider-keyless",
    health=Health.FAILED,
    means="The identity provider has no key that is accepted.",
    advice="It needs an RS256 or ES256 key with a kid.",
)


def _provider(scene: Scene) -> Iterator[CheckResult]:
    if scene.installation.settings.oidc.issuer is None:
        return
    try:
        provider = scene.installation.identity_provider()
        n_keys = 0 if provider is None else provider.n_keys()
    except WardroundError as error:
        detail = f"{error.facts.get('url', '')} {error.facts.get('why', error)}".strip()
        yield found("identity provider", PROVIDER_UNREACHABLE, detail)
        return
    yield found("identity provider", PROVIDER_GOOD if n_keys else PROVIDER_KEYLESS, f"{n_keys} usable keys")


CHECKS: tuple[Check[Scene], ...] = (
    Check(
        name="process",
        family=FAMILY,
        looks_at="the coordinators of this folder that run here, as --live does",
        outcomes=(PROCESS_WELL, PROCESS_NONE, PROCESS_UNWELL),
        run=_process,
    ),
    Check(
        name="ports",
        family=FAMILY,
        looks_at="whether each listener's port can be bound",
        outcomes=(PORT_FREE, PORT_IN_USE, PORT_CHOSEN, PORT_OFF, PORT_TAKEN),
        run=_ports,
    ),
    Check(
        name="addresses",
        family=FAMILY,
        looks_at="the addresses that sites are told, and whether they lead here with this coordinator's certificate",
        outcomes=(
            ADDRESS_REACHED,
            ADDRESS_LOCAL,
            ADDRESS_NOWHERE,
            ADDRESS_UNKNOWN,
            ADDRESS_UNREACHED,
            ADDRESS_FOREIGN,
            ADDRESS_UNTRIED,
        ),
        run=_addresses,
    ),
    Check(
        name="metrics",
        family=FAMILY,
        looks_at="who may read the metrics",
        outcomes=(METRICS_LOCAL, METRICS_OFF, METRICS_OPEN),
        run=_metrics,
    ),
    Check(
        name="identity provider",
        family=FAMILY,
        looks_at="the issuer of OIDC tokens, where one is configured",
        outcomes=(PROVIDER_GOOD, PROVIDER_UNREACHABLE, PROVIDER_KEYLESS),
        run=_provider,
    ),
)
