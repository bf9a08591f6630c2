"""The local rule ``fedprox`` (Li et al., MLSys 2020): the loss plus mu/2 |theta - theta_g|^2.

Its gradient, mu (theta - theta_g), is added to the loss's; the losses that are reported stay those of the data.
mu = 0.01 is OpenFedLLM's default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from site_agent.training.local.rule import Float32Array, Parameters, RoundStart, RuleOutcome, tensors_like


class FedProx:
    """``fedprox``."""

    def correction(self, start: RoundStart, parameters: Parameters) -> Callable[[], None]:
        """Adds mu (theta - theta_g), theta_g being the adapter that the round started from."""
        anchors = tensors_like(parameters, start.state.adapter)
        mu = start.spec.local.mu

        def pull() -> None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter - anchors[name], alpha=mu)

        return pull

    def finish(self, start: RoundStart, update: Float32Array) -> RuleOutcome:  # noqa: ARG002 - nothing follows
        """Nothing: the update alone leaves the site."""
        return RuleOutcome()
