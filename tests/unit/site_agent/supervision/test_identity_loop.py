"""When the agent checks in and renews, by a clock set by hand; what is asked, other tests ask of a coordinator."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fl_protocol.audit.events import AuditFact, AuditKind
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId
from fl_protocol.pki.certificates import Validity, make_ca_certificate
from fl_protocol.pki.keys import generate_private_key
from fl_protocol.signing.site_statement import SiteStatementKind
from site_agent.enrolment.renewal import IdentityKeeper, renewal_instant
from site_agent.errors import CoordinatorRefusedError, CoordinatorUnavailableError
from site_agent.folder import SiteFolder
from site_agent.link.backoff import Backoff
from site_agent.supervision.identity_loop import IdentityLoop
from site_agent.supervision.status_board import StatusBoard

START = datetime(2026, 3, 1, tzinfo=UTC)
KEY = generate_private_key()


def certificate_from(start: datetime) -> x509.Certificate:
    validity = Validity(not_before=start, not_after=start + timedelta(hours=72))
    return make_ca_certificate(KEY, common_name="any", validity=validity, serial=1)


@dataclass
class HandClock:
    at: datetime = START

    def now(self) -> datetime:
        return self.at


@dataclass
class ScriptedKeeper:
    """Stands where the keeper stands: tells what it was asked, and fails as it is told."""

    clock: HandClock
    asked: list[str] = field(default_factory=list)
    has_begun_renewal: bool = False
    fails: WardroundError | None = None
    certificate: x509.Certificate = field(default_factory=lambda: certificate_from(START))

    @property
    def identity(self) -> ScriptedKeeper:
        return self

    site_id = SiteId("alpha")

    async def check_in(self, kind: SiteStatementKind) -> float:
        self.asked.append(kind.value)
        if self.fails is not None:
            raise self.fails
        return 3600.0

    async def renew(self) -> ScriptedKeeper:
        self.asked.append("renew")
        if self.fails is not None:
            raise self.fails
        self.certificate = certificate_from(self.clock.at)
        return self


@dataclass
class Bench:
    clock: HandClock
    keeper: ScriptedKeeper
    loop: IdentityLoop
    folder: SiteFolder
    board: StatusBoard
    recorded: list[tuple[AuditKind, dict[str, AuditFact]]]

    async def at(self, **since: float) -> list[str]:
        """What is asked at this instant after the start."""
        self.clock.at = START + timedelta(**since)
        before = len(self.keeper.asked)
        await self.loop.turn()
        return self.keeper.asked[before:]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    clock = HandClock()
    keeper, folder = ScriptedKeeper(clock), SiteFolder(root=tmp_path)
    board = StatusBoard(folder.status_json, SiteId("alpha"), clock)
    recorded: list[tuple[AuditKind, dict[str, AuditFact]]] = []

    def record(kind: AuditKind, facts: dict[str, AuditFact]) -> None:
        recorded.append((kind, facts))

    as_keeper: IdentityKeeper = keeper  # type: ignore[assignment]
    loop = IdentityLoop(
        as_keeper,
        folder=folder,
        clock=clock,
        draw=lambda: 0.5,
        backoff=Backoff(lambda: 0.5),
        board=board,
        record=record,
    )
    return Bench(clock, keeper, loop, folder, board, recorded)


@pytest.mark.parametrize(("draw", "hours"), [(0.0, 28.8), (0.5, 36.0), (1.0, 43.2)])
def test_renewal_is_due_at_half_of_the_life_give_or_take_a_tenth(draw: float, hours: float) -> None:
    assert renewal_instant(certificate_from(START), draw) == START + timedelta(hours=hours)


async def test_agent_says_that_it_started_then_that_it_is_there_and_renews_at_half(bench: Bench) -> None:
    assert await bench.at() == ["started"]
    assert await bench.at(minutes=59) == []
    assert await bench.at(minutes=60) == ["present"]
    assert await bench.at(hours=35.9) == ["present"]
    assert await bench.at(hours=36) == ["renew"]
    assert await bench.at(hours=36.1) == []
    assert bench.board.status.certificate_until == "2026-03-05T12:00:00.000000Z"
    assert await bench.at(hours=72) == ["renew"]


async def test_agent_that_gets_no_answer_tries_again_after_a_wait_and_says_the_same(bench: Bench) -> None:
    bench.keeper.fails = CoordinatorUnavailableError("away")
    assert await bench.at(seconds=0) == ["started"]
    assert await bench.at(seconds=0.01) == []
    bench.keeper.fails = None
    assert await bench.at(minutes=5) == ["started"]
    assert bench.recorded == []


async def test_refusal_is_recorded_once_and_asked_again_later(bench: Bench) -> None:
    bench.keeper.fails = CoordinatorRefusedError(
        "two copies", status="PERMISSION_DENIED", refusal_code="site-cloned", call="CheckIn"
    )
    assert await bench.at() == ["started"]
    assert await bench.at(seconds=10) == []
    assert await bench.at(seconds=31) == ["started"]
    assert bench.recorded == [(AuditKind.RENEWAL_REFUSED, {"code": "site-cloned"})]


async def test_renewal_that_was_begun_is_gone_on_with_though_it_is_not_due(bench: Bench) -> None:
    await bench.at()
    bench.keeper.has_begun_renewal = True
    bench.keeper.fails = CoordinatorUnavailableError("away")
    assert await bench.at(minutes=1) == ["renew"]
    bench.keeper.fails = None
    assert await bench.at(minutes=2) == ["renew"]
    bench.keeper.has_begun_renewal = False
    assert await bench.at(minutes=3) == []


async def test_steward_s_wish_is_granted_at_once_and_once(bench: Bench) -> None:
    await bench.at()
    bench.folder.renewal_wish.touch()
    assert await bench.at(minutes=1) == ["renew"]
    assert await bench.at(minutes=2) == []
    assert not bench.folder.renewal_wish.exists()
