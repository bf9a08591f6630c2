"""The local rule ``scaffold`` (Karimireddy et al., ICML 2020, option II): steps along g - c_k + c, by plain SGD.

    theta <- theta - lr (g - c_k + c)       c_k' = c_k - c - x / L       x: the clipped update, L: the sum of the rates

c_k stays at this site, as private state; c is public. OpenFedLLM adds the correction to the weights behind Adam's back,
after its step, where it is not on the scale of Adam's steps. Here it is part of the gradient, the optimiser is the SGD
that the equations are about, and L is the sum of the rates that were used. c_k' follows from the update as it is
clipped, which is the one that the server's c moves by (decision 0041).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from fl_protocol.codec.clipping import clip_l2
from fl_protocol.folds.control_variate import CONTROL_UPDATE, control_of, control_step
from site_agent.training.local.rule import Float32Array, Parameters, RoundStart, RuleOutcome, tensors_like

OWN_CONTROL = "own_control"
"""The name of c_k in this site's private state: float32, shape (d,), in the layout's order."""


class Scaffold:
    """``scaffold``."""

    def correction(self, start: RoundStart, parameters: Parameters) -> Callable[[], None]:
        """Adds c - c_k."""
        layout = start.layout
        drift = layout.flatten(control_of(start.state.server, layout)) - _own_control(start)
        drifts = tensors_like(parameters, layout.unflatten(drift))

        def steer() -> None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        parameter.grad.add_(drifts[name])

        return steer

    def finish(self, start: RoundStart, update: Float32Array) -> RuleOutcome:
        """The segment c_k' - c_k, and c_k' as the private state that follows."""
        clipped, _ = clip_l2(update, start.spec.privacy.clip_norm)
        control = start.layout.flatten(control_of(start.state.server, start.layout))
        step = control_step(clipped, control, spec=start.spec, round_index=start.round_index)
        return RuleOutcome(segments={CONTROL_UPDATE: step}, private={OWN_CONTROL: _own_control(start) + step})


def _own_control(start: RoundStart) -> Float32Array:
    """c_k; zeros before the first round that counted this site."""
    own = start.private.get(OWN_CONTROL)
    if own is None:
        return np.zeros(start.layout.n_parameters, dtype=np.float32)
    start.layout.unflatten(own, is_shared=True)
    return own
