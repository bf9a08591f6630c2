"""``aggregation.server``: which rule applies the mean update, and the parameters that this rule has and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Reader


class ServerOptimizerName(StrEnum):
    """How the mean update is applied."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDADAGRAD = "fedadagrad"
    FEDYOGI = "fedyogi"
    FEDADAM = "fedadam"


SERVER_PARAMETERS: Mapping[ServerOptimizerName, tuple[str, ...]] = {
    ServerOptimizerName.FEDAVG: (),
    ServerOptimizerName.FEDAVGM: ("beta1",),
    ServerOptimizerName.FEDADAGRAD: ("learning_rate", "tau"),
    ServerOptimizerName.FEDYOGI: ("learning_rate", "tau", "beta1", "beta2"),
    ServerOptimizerName.FEDADAM: ("learning_rate", "tau", "beta1", "beta2"),
}
"""The parameters of each rule. Only these are in its document: a spec of fedavg has the digest that it always had."""

_BOUNDS: Mapping[str, Mapping[str, float]] = {
    "learning_rate": {"above": 0, "high": 1e3, "default": 1e-3},
    # The smallest keeps tau^2 a normal float32, and with it every quotient finite.
    "tau": {"low": 1e-15, "high": 1e3, "default": 1e-3},
    "beta1": {"low": 0, "below": 1, "default": 0.9},
    "beta2": {"low": 0, "below": 1, "default": 0.99},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """``aggregation.server``. Invariant: a parameter that the rule does not have is at its default.

    Attributes:
        optimizer: the rule.
        learning_rate: eta; how far one step goes.
        tau: what is added to the root of the second moment; its square is that moment before the first round.
        beta1: how much of the first moment stays.
        beta2: how much of the second moment stays.
    """

    optimizer: ServerOptimizerName
    learning_rate: float = 1e-3
    tau: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99

    @property
    def parameters(self) -> dict[str, float]:
        """The rule's own parameters, by name."""
        return {name: float(getattr(self, name)) for name in SERVER_PARAMETERS[self.optimizer]}

    @property
    def summary(self) -> str:
        """The rule and its parameters in a few words, for a page that people approve."""
        values = ", ".join(f"{name} {value:g}" for name, value in self.parameters.items())
        return f"{self.optimizer.value} ({values})" if values else self.optimizer.value

    def to_document(self) -> dict[str, object]:
        """The section as JSON values."""
        return {"optimizer": self.optimizer.value, **self.parameters}


def read_server(section: Reader) -> ServerSpec:
    """``server: {optimizer=fedavg, learning_rate=1e-3, tau=1e-3, beta1=0.9, beta2=0.99}``; a rule has its own only."""
    optimizer = section.choice("optimizer", ServerOptimizerName, default=ServerOptimizerName.FEDAVG)
    own = SERVER_PARAMETERS[optimizer]
    for name in _BOUNDS:
        if name not in own and section.has(name):
            section.skip(name)
            section.fault(name, f"{optimizer.value} has no such parameter (it has: {', '.join(own) or 'none'})")
    values = {name: section.number(name, **_BOUNDS[name]) for name in own}
    section.finish()
    return ServerSpec(optimizer=optimizer, **values)
