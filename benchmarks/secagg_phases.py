"""What the key phases of one exchange cost a site: CPU milliseconds a step, and bytes up and down, without the vector.

Every site of the exchange is real and in this process; the vector has four words, so that masking is only its set-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.rows import Row, announce
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.testing.federation import Federation, small_layout


class StepClock:
    """Runs a step at every site and keeps its CPU time and what it sent."""

    def __init__(self, roles: dict[SiteId, SiteRole]) -> None:
        """Measure these sites."""
        self.roles = roles
        self.cpu_ms: dict[str, float] = {}
        self.bytes_up = 0

    def step(self, name: str, act: Callable[[SiteRole, SiteId], bytes]) -> dict[SiteId, bytes]:
        """Let every site act; remember the mean CPU milliseconds of one."""
        began = time.thread_time()
        sent = {site: act(role, site) for site, role in self.roles.items()}
        self.cpu_ms[name] = 1000 * (time.thread_time() - began) / len(self.roles)
        self.bytes_up += sum(map(len, sent.values())) // len(self.roles)
        return sent


def measure_exchange(n_sites: int) -> tuple[dict[str, float], int, int, float]:
    """CPU ms a step of a site, its bytes up and down, and the coordinator's CPU ms for recovering the masks."""
    sites = tuple(SiteId(f"site-{i:03}") for i in range(n_sites))
    layout = small_layout(n_ring32=4, n_ring64=1, max_sites=n_sites)
    federation = Federation(sites, layout)
    opened = federation.open_exchange()
    clock = StepClock({site: federation.open_role(site, opened) for site in sites})

    m1s = clock.step("advertise (M1)", lambda role, _: role.advertise())
    cohort = coordinator_role.freeze_cohort(opened, m1s)
    m2 = coordinator_role.make_m2(cohort)
    m3s = clock.step("share (M2, M3)", lambda role, _: role.share(m2))
    sharers = coordinator_role.freeze_sharers(cohort, m3s)
    m4s = {site: coordinator_role.make_m4(sharers, site) for site in sites}

    def mask(role: SiteRole, site: SiteId) -> bytes:
        role.accept_shares(m4s[site])
        return role.mask(RingVector.zeros(layout.n_ring32, layout.n_ring64)).header

    m5s = clock.step("open shares, derive masks (M4, M5)", mask)
    survivors = coordinator_role.freeze_survivors(sharers, m5s)
    m6 = coordinator_role.make_m6(survivors)
    m7s = clock.step("confirm (M6, M7)", lambda role, _: role.confirm(m6))
    m8 = coordinator_role.make_m8(survivors, m7s)
    m9s = clock.step("reveal (M8, M9)", lambda role, _: role.reveal(m8))
    began = time.thread_time()
    coordinator_role.recover_mask_terms(survivors, m9s)
    recover_ms = 1000 * (time.thread_time() - began)
    bytes_down = len(m2) + sum(map(len, m4s.values())) // n_sites + len(m6) + len(m8)
    return clock.cpu_ms, clock.bytes_up, bytes_down, recover_ms


def phase_rows(site_counts: list[int]) -> list[Row]:
    """One row a cohort size for the site's milliseconds, bytes up and down, and the coordinator's recovery."""
    rows: list[Row] = []
    for n_sites in site_counts:
        announce(f"key phases of {n_sites} sites")
        cpu_ms, bytes_up, bytes_down, recover_ms = measure_exchange(n_sites)
        steps = ", ".join(f"{name} {ms:.1f}" for name, ms in cpu_ms.items())
        rows += [
            Row(
                name=f"key phases: CPU a site, {n_sites} sites",
                value=sum(cpu_ms.values()),
                unit="ms",
                yardstick_name=steps,
            ),
            Row(name=f"key phases: bytes up a site, {n_sites} sites", value=bytes_up / 1024, unit="KiB"),
            Row(name=f"key phases: bytes down a site, {n_sites} sites", value=bytes_down / 1024, unit="KiB"),
            Row(name=f"key phases: coordinator recovers masks, {n_sites} sites", value=recover_ms, unit="ms"),
        ]
    return rows
