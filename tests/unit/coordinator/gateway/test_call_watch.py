"""A call that was admitted is ended when its site may not act any more, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from coordinator.errors import DatabaseUnavailableError, SiteNotActiveError
from coordinator.gateway import call_watch
from coordinator.gateway.admission import Admission, CallRefusedError, IncomingCall, PeerCertificate, note_moved
from coordinator.services.identify_site import CallingSite
from coordinator.services.wakeups import Bell
from fl_protocol.errors import WardroundError
from fl_protocol.ids import SiteId

SITE = PeerCertificate(site_id=SiteId("st-mary"), sha256="0" * 64)
CALL = IncomingCall(method="UploadBlob", peer="test", certificate=lambda: SITE)


@dataclass
class Registry:
    """Who may act, as the database would say."""

    refusal: Exception | None = None
    n_asked: int = 0
    bell: Bell = field(default_factory=Bell)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def identify(self, site_id: SiteId, certificate_sha256: str) -> CallingSite:
        self.n_asked += 1
        self.asked.set()
        if self.refusal is not None:
            raise self.refusal
        return CallingSite(site_id=site_id, certificate_sha256=certificate_sha256)

    def change(self, refusal: Exception | None) -> None:
        self.refusal = refusal
        self.asked.clear()
        self.bell.ring()


@pytest.fixture(autouse=True)
def watched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_watch, "WATCHED_AFTER_S", 0.0)


@pytest.fixture
def registry() -> Registry:
    return Registry()


async def admitted(registry: Registry, begun: asyncio.Event, *, beat: Callable[[], None] = lambda: None) -> str:
    """A call that goes on until it is told to end, or is ended."""
    admission = Admission(identify=registry.identify, changes=registry.bell)
    async with admission.admitted(CALL, timeout_s=3600):
        begun.set()
        while True:
            beat()
            await asyncio.sleep(0)


async def test_site_that_is_revoked_during_a_stream_is_cut_off_with_the_reason(registry: Registry) -> None:
    begun = asyncio.Event()
    # Each byte that arrives puts a stream's deadline off; that must not keep a revoked site's stream alive.
    call = asyncio.create_task(admitted(registry, begun, beat=note_moved))
    await begun.wait()
    registry.change(SiteNotActiveError("this site is REVOKED", site_id="st-mary", state="REVOKED"))
    with pytest.raises(CallRefusedError) as ended:
        await asyncio.wait_for(call, 10)
    assert ended.value.refused.code.name == "PERMISSION_DENIED"
    assert "site-not-active" in str(ended.value.refused.refusal)


async def test_site_that_is_revoked_between_its_admission_and_the_watch_is_cut_off_too(registry: Registry) -> None:
    begun = asyncio.Event()
    call = asyncio.create_task(admitted(registry, begun))
    registry.bell.ring()
    registry.refusal = None
    await begun.wait()
    registry.refusal = SiteNotActiveError("this site is SUSPENDED", site_id="st-mary", state="SUSPENDED")
    registry.bell.ring()
    with pytest.raises(CallRefusedError):
        await asyncio.wait_for(call, 10)


@pytest.mark.parametrize(
    "said", [None, DatabaseUnavailableError("away", tx="identify_site")], ids=["another site", "the database is away"]
)
async def test_change_that_is_not_against_this_site_ends_nothing(
    registry: Registry, said: WardroundError | None
) -> None:
    begun = asyncio.Event()
    call = asyncio.create_task(admitted(registry, begun))
    await begun.wait()
    registry.change(said)
    await asyncio.wait_for(registry.asked.wait(), 10)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_call_is_still_watched_after_a_look_that_failed_in_a_way_nobody_foresaw(registry: Registry) -> None:
    begun = asyncio.Event()
    call = asyncio.create_task(admitted(registry, begun))
    await begun.wait()
    registry.change(RuntimeError("a fault of the coordinator's own"))
    await asyncio.wait_for(registry.asked.wait(), 10)
    registry.change(SiteNotActiveError("this site is REVOKED", site_id="st-mary", state="REVOKED"))
    with pytest.raises(CallRefusedError):
        await asyncio.wait_for(call, 10)


async def test_call_that_ends_at_once_is_asked_about_once(registry: Registry) -> None:
    admission = Admission(identify=registry.identify, changes=registry.bell)
    async with admission.admitted(CALL, timeout_s=3600):
        pass
    registry.bell.ring()
    for _ in range(20):
        await asyncio.sleep(0)
    assert registry.n_asked == 1
    assert registry.bell.n_waiting == 0
