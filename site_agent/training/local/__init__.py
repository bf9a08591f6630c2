"""How a site trains within a round: one file a local rule, one table. The steps themselves are shared (``steps``)."""

from __future__ import annotations

from fl_protocol.spec.run_spec_parts import LocalRule
from site_agent.training.local.fedprox import FedProx
from site_agent.training.local.plain import Plain
from site_agent.training.local.rule import LocalRuleHalf
from site_agent.training.local.scaffold import Scaffold

LOCAL_RULES: dict[LocalRule, LocalRuleHalf] = {
    LocalRule.PLAIN: Plain(),
    LocalRule.FEDPROX: FedProx(),
    LocalRule.SCAFFOLD: Scaffold(),
}
"""Every rule of this version, by the name in ``local.rule``."""
