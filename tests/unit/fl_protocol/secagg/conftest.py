"""An exchange among five sites that stops after any message, so that the next one can be forged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.coordinator_role import ExchangeOpen, KeyedCohort, SharedCohort, SurvivingCohort
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.testing.federation import Federation, LastSent, small_layout
from fl_protocol.testing.strategies import site_names


@dataclass
class Scene:
    federation: Federation
    opened: ExchangeOpen
    roles: dict[SiteId, SiteRole]
    m1s: dict[SiteId, bytes] = field(default_factory=dict)
    m3s: dict[SiteId, bytes] = field(default_factory=dict)
    m5s: dict[SiteId, bytes] = field(default_factory=dict)
    m7s: dict[SiteId, bytes] = field(default_factory=dict)
    m9s: dict[SiteId, bytes] = field(default_factory=dict)
    keyed: KeyedCohort | None = None
    shared: SharedCohort | None = None
    surviving: SurvivingCohort | None = None
    m2: bytes = b""
    m6: bytes = b""
    m8: bytes = b""

    @property
    def sites(self) -> tuple[SiteId, ...]:
        return tuple(sorted(self.roles))

    def vector(self, site: SiteId) -> RingVector:
        layout = self.federation.layout
        number = self.sites.index(site) + 1
        return RingVector(
            ring32=np.full(layout.n_ring32, number, "<u4"), ring64=np.full(layout.n_ring64, number, "<u8")
        )

    def play(self, until: LastSent, *, lost: tuple[SiteId, ...] = ()) -> Scene:
        """Everybody acts as it should up to this message; the ``lost`` upload nothing."""
        if until >= LastSent.M1:
            self.m1s = {site: role.advertise() for site, role in self.roles.items()}
            self.keyed = coordinator_role.freeze_cohort(self.opened, self.m1s)
            self.m2 = coordinator_role.make_m2(self.keyed)
        if until >= LastSent.M3:
            self.m3s = {site: role.share(self.m2) for site, role in self.roles.items()}
            self.shared = coordinator_role.freeze_sharers(self.keyed, self.m3s)
        if until >= LastSent.M5:
            for site, role in self.roles.items():
                if site not in lost:
                    role.accept_shares(coordinator_role.make_m4(self.shared, site))
                    self.m5s[site] = role.mask(self.vector(site)).header
            self.surviving = coordinator_role.freeze_survivors(self.shared, self.m5s)
            self.m6 = coordinator_role.make_m6(self.surviving)
        if until >= LastSent.M7:
            self.m7s = {site: self.roles[site].confirm(self.m6) for site in self.m5s}
            self.m8 = coordinator_role.make_m8(self.surviving, self.m7s)
        if until >= LastSent.M9:
            self.m9s = {site: self.roles[site].reveal(self.m8) for site in self.m7s}
        return self


@pytest.fixture
def new_scene() -> Callable[..., Scene]:
    def build(n: int = 5, *, federation: Federation | None = None, exchange_attempt: int = 0) -> Scene:
        federation = federation or Federation(site_names(n), small_layout())
        opened = federation.open_exchange(exchange_attempt=exchange_attempt)
        roles = {site: federation.open_role(site, opened) for site in federation.site_ids}
        return Scene(federation=federation, opened=opened, roles=roles)

    return build


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    return new_scene()
