"""How the mean update moves the global adapter: one file a rule, one table. Sites recompute each step bit for bit.

FedOpt (Reddi et al., ICLR 2021) sees the mean update D as a pseudo-gradient; ``fedavg`` is its plain case. The mean is
the one that the secure sum gives, weighted by capped record counts, for every rule (docs/decisions/0040). A rule's
moments lie in ``PublicState.server`` as ``<moment>.<tensor>``: public, in the digest of M0, and at every site.
"""

from __future__ import annotations

from fl_protocol.folds.server_rules.fedadagrad import step_fedadagrad
from fl_protocol.folds.server_rules.fedadam import step_fedadam
from fl_protocol.folds.server_rules.fedavg import step_fedavg
from fl_protocol.folds.server_rules.fedavgm import step_fedavgm
from fl_protocol.folds.server_rules.fedyogi import step_fedyogi
from fl_protocol.folds.server_rules.rule import ServerRule
from fl_protocol.spec.server_spec import ServerOptimizerName

SERVER_RULES: dict[ServerOptimizerName, ServerRule] = {
    ServerOptimizerName.FEDAVG: step_fedavg,
    ServerOptimizerName.FEDAVGM: step_fedavgm,
    ServerOptimizerName.FEDADAGRAD: step_fedadagrad,
    ServerOptimizerName.FEDYOGI: step_fedyogi,
    ServerOptimizerName.FEDADAM: step_fedadam,
}
"""Every rule of this version, by the name in ``aggregation.server.optimizer``."""
