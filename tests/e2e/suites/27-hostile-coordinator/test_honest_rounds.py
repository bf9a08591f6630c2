"""The double by itself: where it is told no attack, real agents go through its run over the wire to the end."""

from __future__ import annotations

from tests.support.hostile_federation import HostileFederationOf


async def test_run_without_an_attack_ends_with_the_same_state_everywhere(federation_of: HostileFederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=2)
    await federation.run_to_the_end()
    coordinator = federation.coordinator
    assert coordinator.declined == []
    for acknowledged in coordinator.acknowledged.values():
        assert len(set(acknowledged.values())) == 1
    assert [site.newest_version(coordinator.run_id) for site in federation.sites.values()] == [2, 2, 2]
    assert all(site.has_recorded("sum.checked", round_index=2) for site in federation.sites.values())
