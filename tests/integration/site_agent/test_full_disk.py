"""A site whose disk is full at any of its writes: no record, no action; and when there is room, the same bytes.

``FakeCoordinator.hear`` fails a test when a site says two different things in one exchange.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from site_agent.db.errors import SiteDatabaseFullError
from site_agent.db.tx import SiteDb
from site_agent.errors import SiteDiskFullError
from site_agent.session.events import DeclineKind
from site_agent.state import disk_space, journal, private_files
from site_agent.state.private_files import write_private_file

FederationOf = Callable[..., Any]


def assert_one_state(federation: Any) -> None:
    for acknowledged in federation.coordinator.acknowledged.values():
        assert len(set(acknowledged.values())) == 1
    assert federation.coordinator.declined == []
    # Trained once a round: nothing was lost that would have to be made again.
    assert all(len(site.runner.seeds) == len(set(site.runner.seeds)) == 2 for site in federation.sites.values())


@pytest.mark.parametrize("place", range(8))
async def test_journal_or_spool_without_room_stops_the_step_and_the_round_goes_on_with_the_same_bytes(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    seen: list[str] = []
    refused: list[str] = []

    def write(path: Path, parts: Iterable[Any]) -> None:
        if "beta" in str(path):
            seen.append(path.name)
            if place <= len(seen) - 1 < place + 3:
                refused.append(path.name)
                raise SiteDiskFullError("full", folder=path.parent.name)
        write_private_file(path, parts)

    monkeypatch.setattr(journal, "write_private_file", write)
    await federation.run_to_the_end()
    assert len(refused) == 3
    assert_one_state(federation)


@pytest.mark.parametrize(
    "name",
    [
        "join-round",
        "record-round-state",
        "ensure-advertised",
        "claim-mask",
        "ensure-confirmed",
        "ensure-revealed",
        "record-settled",
        "save-public-state",
        "record-event",
    ],
)
async def test_database_without_room_stops_the_step_and_the_round_goes_on_with_the_same_bytes(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    real, refused = SiteDb.run_tx, []

    def run_tx(self: SiteDb, tx: str, fn: Callable[..., Any]) -> Any:
        if tx == name and "beta" in str(self._engine.url) and len(refused) < 2:
            refused.append(tx)
            raise SiteDatabaseFullError("full", transaction=tx)
        return real(self, tx, fn)

    monkeypatch.setattr(SiteDb, "run_tx", run_tx)
    await federation.run_to_the_end()
    assert len(refused) == 2
    for acknowledged in federation.coordinator.acknowledged.values():
        assert len(set(acknowledged.values())) == 1


async def test_site_without_room_for_training_declines_as_failed_and_joins_the_next_round(
    federation_of: FederationOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federation_of(n_sites=4, rounds=1)
    real = disk_space.free_bytes

    def free(folder: Path) -> int:
        return 1000 if "beta" in str(folder) else real(folder)

    monkeypatch.setattr(disk_space, "free_bytes", free)
    coordinator = federation.coordinator
    await federation.run(lambda: bool(coordinator.declined))
    assert [(site, kind, reason) for site, _, kind, reason in map(_declined, coordinator.declined)] == [
        ("beta", DeclineKind.FAILED, "site-disk-full")
    ]
    assert federation.sites["beta"].runner.seeds == []


def _declined(entry: Any) -> tuple[str, object, DeclineKind, str]:
    site, *rest = entry
    kind = next(part for part in rest if isinstance(part, DeclineKind))
    reason = next(part for part in reversed(rest) if isinstance(part, str) and part not in set(DeclineKind))
    return str(site), None, kind, reason


def test_space_is_asked_for_with_its_margin_and_the_refusal_says_how_much(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    free = room.f_bavail * room.f_frsize
    disk_space.require_space(tmp_path / "not" / "there" / "yet", 1, purpose="test")
    with pytest.raises(SiteDiskFullError) as refusal:
        disk_space.require_space(tmp_path, 2 * free, purpose="test")
    assert refusal.value.code == "site-disk-full"
    assert refusal.value.facts["needed_bytes"] == 2 * free + disk_space.MARGIN_BYTES


def test_file_that_does_not_fit_is_a_typed_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write_private_file(path, [b"old"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SiteDiskFullError):
            write_private_file(path, [b"n" * 10_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"old"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["record"]
    assert private_files.write_private_file is write_private_file
