"""The local rule ``plain``: the gradient of the loss and nothing else (FedAvg's; McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from collections.abc import Callable

from site_agent.training.local.rule import Float32Array, Parameters, RoundStart, RuleOutcome


class Plain:
    """``plain``."""

    def correction(self, start: RoundStart, parameters: Parameters) -> Callable[[], None]:  # noqa: ARG002 - none
        """Nothing."""
        return lambda: None

    def finish(self, start: RoundStart, update: Float32Array) -> RuleOutcome:  # noqa: ARG002 - nothing follows
        """Nothing."""
        return RuleOutcome()
