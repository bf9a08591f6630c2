"""The checks of what the coordinator answers: whether this site is admitted, and what time it is there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from fl_protocol.telemetry.findings import Check, CheckResult, Health, Outcome, found
from site_agent.doctor.endpoints import Listener
from site_agent.doctor.network_checks import FAMILY, breaks_http2
from site_agent.doctor.scene import Scene
from site_agent.doctor.walks import Walk
from site_agent.errors import CoordinatorRefusedError

ADMITTED = Outcome(code="coordinator-admits", health=Health.OK, means="The coordinator admits this site.")
ADMITTED_HTTP1 = Outcome(
    code="coordinator-admits-http1",
    health=Health.OK,
    means="It is not reached by gRPC and admits this site over HTTP/1.1, which the agent chooses by itself.",
)
REFUSED = Outcome(
    code="coordinator-refuses",
    health=Health.FAILED,
    means="The coordinator is reached and refuses this site.",
    advice="Ask its admin: the sentence is the coordinator's own.",
)
UNREACHED = Outcome(
    code="coordinator-unreached",
    health=Health.FAILED,
    means="No way leads to the coordinator.",
    advice="Mend the lines above it, from the top.",
)
NOT_ASKED = Outcome(
    code="coordinator-not-asked",
    health=Health.NOTE,
    means="Before enrolment nobody can ask to be admitted; the way to the enrolment listener is open.",
)
FALLBACK_UNSET = Outcome(
    code="fallback-unset",
    health=Health.FAILED,
    means="HTTP/2 does not get through; HTTP/1.1 does, at the usual port, and the agent does not know of it.",
    advice="Set coordinator.fallback_address in site.yaml to the HOST:PORT of the sentence, and start the agent again.",
)
FALLBACK_UNKNOWN = Outcome(
    code="fallback-unknown",
    health=Health.FAILED,
    means="HTTP/2 does not get through, and no address for HTTP/1.1 is known.",
    advice="Set coordinator.fallback_address in site.yaml to the coordinator's HOST:8446.",
)


def _coordinator(scene: Scene) -> Iterator[CheckResult]:
    walks = {walk.endpoint.listener: walk for walk in scene.walks()}
    if not walks:
        return
    if not scene.is_enrolled:
        ways = [walks[listener] for listener in (Listener.ENROLMENT, Listener.ENROLMENT_HTTP1) if listener in walks]
        if any(walk.is_open for walk in ways):
            yield found("coordinator", NOT_ASKED, "the way to the enrolment listener is open: the site may enrol")
        else:
            yield found("coordinator", UNREACHED, "the enrolment listener is not reached")
        return
    gateway, fallback = walks.get(Listener.GATEWAY), walks.get(Listener.GATEWAY_HTTP1)
    if gateway is not None and gateway.is_open:
        yield found("coordinator", ADMITTED, f"{gateway.endpoint.address} admits this site")
    elif gateway is not None and isinstance(gateway.answer, CoordinatorRefusedError):
        yield found("coordinator", REFUSED, str(gateway.answer))
    elif fallback is not None and fallback.is_open and fallback.endpoint.is_guessed:
        message = f"HTTP/1.1 gets through at {fallback.endpoint.address}, and the agent is not told so"
        yield found("coordinator", FALLBACK_UNSET, message)
    elif fallback is not None and fallback.is_open:
        yield found("coordinator", ADMITTED_HTTP1, f"{fallback.endpoint.address} admits this site over HTTP/1.1")
    elif fallback is None and breaks_http2(gateway):
        yield found("coordinator", FALLBACK_UNKNOWN, "not reached by HTTP/2, and no address for HTTP/1.1 is known")
    else:
        said = gateway.answer if gateway is not None and gateway.answer is not None else "no way leads to it"
        yield found("coordinator", UNREACHED, str(said))


# New certificates are backdated by five minutes: a clock that is behind by more refuses them.
_CLOCK_BAD = timedelta(minutes=5)
_CLOCK_OFF = timedelta(seconds=30)

CLOCK_GOOD = Outcome(code="clock-good", health=Health.OK, means="This machine's clock agrees with the coordinator's.")
CLOCK_OFF = Outcome(
    code="clock-off",
    health=Health.WARNING,
    means="The clocks differ by more than 30 s.",
    advice="Let this machine follow a time server (chrony, systemd-timesyncd), as the coordinator's should.",
)
CLOCK_WRONG = Outcome(
    code="clock-wrong",
    health=Health.FAILED,
    means="The clocks differ by more than five minutes: certificates and signed statements would be refused.",
    advice="Set this machine's clock (NTP: chrony or systemd-timesyncd); in a virtual machine, on its host as well.",
)
CLOCK_UNKNOWN = Outcome(
    code="clock-unknown",
    health=Health.NOTE,
    means="The coordinator's time is heard over HTTP/1.1 only, and that way is not open.",
)


def _clock(scene: Scene) -> Iterator[CheckResult]:
    walks = scene.walks()
    if not walks:
        return
    heard = next((walk.ahead_by for walk in walks if walk.ahead_by is not None), None)
    if heard is None:
        heard = _ahead_by_certificates(scene, walks)
    if heard is None:
        yield found("clock", CLOCK_UNKNOWN, "no listener told its time")
        return
    yield judge_clock(heard)


def judge_clock(ahead_by: timedelta) -> CheckResult:
    """How far this machine's clock may be from the coordinator's."""
    seconds = round(ahead_by.total_seconds())
    which = "ahead of" if seconds > 0 else "behind"
    message = f"{abs(seconds)} s {which} the coordinator's" if seconds else "as the coordinator's"
    size = abs(ahead_by)
    outcome = CLOCK_GOOD if size <= _CLOCK_OFF else (CLOCK_OFF if size <= _CLOCK_BAD else CLOCK_WRONG)
    return found("clock", outcome, message, ahead_by_s=seconds)


def _ahead_by_certificates(scene: Scene, walks: tuple[Walk, ...]) -> timedelta | None:
    """The least that the clock must be wrong by where it is outside a shown certificate's life; else None."""
    now = scene.clock()
    for walk in walks:
        if walk.certificate is not None and walk.end is None:
            if now < walk.certificate.not_valid_before_utc:
                return now - walk.certificate.not_valid_before_utc
            if now > walk.certificate.not_valid_after_utc:
                return now - walk.certificate.not_valid_after_utc
    return None


CHECKS = (
    Check(
        name="coordinator",
        family=FAMILY,
        looks_at="one call as this site; before enrolment, whether the site may enrol",
        outcomes=(ADMITTED, ADMITTED_HTTP1, REFUSED, UNREACHED, NOT_ASKED, FALLBACK_UNSET, FALLBACK_UNKNOWN),
        run=_coordinator,
    ),
    Check(
        name="clock",
        family=FAMILY,
        looks_at="this machine's clock against the coordinator's, by the date of an HTTP/1.1 answer or of certificates",
        outcomes=(CLOCK_GOOD, CLOCK_OFF, CLOCK_WRONG, CLOCK_UNKNOWN),
        run=_clock,
    ),
)
