"""An exchange that stops after any message, so that a test can forge the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.ids import SiteId
from fl_protocol.secagg import coordinator_role
from fl_protocol.secagg.coordinator_role import ExchangeOpen, KeyedCohort, SharedCohort, SurvivingCohort
from fl_protocol.secagg.site_role import SiteRole
from fl_protocol.testing.federation import Federation, LastSent


@dataclass(slots=True, kw_only=True)
class Scene:
    """One exchange under way; ``play`` takes it to any message, and each message stays at hand."""

    federation: Federation
    opened: ExchangeOpen
    roles: dict[SiteId, SiteRole]
    m1s: dict[SiteId, bytes] = field(default_factory=dict)
    m3s: dict[SiteId, bytes] = field(default_factory=dict)
    m5s: dict[SiteId, bytes] = field(default_factory=dict)
    m7s: dict[SiteId, bytes] = field(default_factory=dict)
    m9s: dict[SiteId, bytes] = field(default_factory=dict)
    keyed: KeyedCohort = field(init=False)
    shared: SharedCohort = field(init=False)
    surviving: SurvivingCohort = field(init=False)
    m2: bytes = b""
    m6: bytes = b""
    m8: bytes = b""

    @property
    def sites(self) -> tuple[SiteId, ...]:
        """The sites' names, ascending."""
        return tuple(sorted(self.roles))

    def vector(self, site: SiteId) -> RingVector:
        """A fresh payload: every word is the site's number, from 1."""
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
