r"""The site's half of an exchange: one file a phase, each a pure function from the phase before to the phase after.

    OPENED -> ADVERTISED -> SHARED -> AGREED -> MASKED -> CONFIRMED -> REVEALED -> FINISHED
                               \-> COMPLAINED

A site believes nothing but its own approvals: it verifies every peer itself, computes the threshold itself, and walks
its own table when it reveals. What it no longer needs is not in the next phase's state.
"""

from __future__ import annotations

from fl_protocol.secagg.site_role.masked import MaskedUpload
from fl_protocol.secagg.site_role.phases import SitePhase
from fl_protocol.secagg.site_role.role import SiteRole

__all__ = ["MaskedUpload", "SitePhase", "SiteRole"]
