"""SCAFFOLD's control variates (Karimireddy et al., ICML 2020, option II) as a second segment of the same exchange.

With x_k the clipped update of site k, L the sum of the round's learning rates and c the server's control variate:

    c_k' = c_k - c - x_k / L        dc_k = c_k' - c_k = -c - x_k / L        c <- c + (n / N) sum w_k dc_k / sum w_k

n sites of the N in the roster were counted. Where all weights are equal (``privacy.weight_cap: 1``) this is
OpenFedLLM's c + (1/N) sum dc_k to the letter; with weights, c stays the mean of the c_k under the weights by which the
adapter moves.

Safety: dc_k is an affine function of x_k that everybody knows, weighted by the same w_k and clipped with it. So the two
sums are one equation in the sites' updates, not two, and beyond its rounding the second publishes nothing that the
first does not (docs/decisions/0041). The fold holds them against each other: nobody steers c by anything but the update
that is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fl_protocol.codec.errors import ImplausibleSumError
from fl_protocol.codec.fixed_point import sum_error_bound
from fl_protocol.codec.sums import SumValues
from fl_protocol.spec.learning_rate import smallest_sum_of_learning_rates, sum_of_learning_rates
from fl_protocol.spec.payload_layout import PayloadLayout, Segment, SegmentKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.run_spec_parts import LocalRule
from fl_protocol.tensors.adapter_layout import AdapterLayout

CONTROL_UPDATE = "control_update"
COUNTED = "counted"
_PREFIX = "control."
_CHUNK = 1 << 16
_ROUNDING = 8 * 2.0**-24
"""Of a site's float32: the quotient, the difference, the weight and the product, each twice over."""

Float32Array = NDArray[np.float32]


def has_control(spec: RunSpec) -> bool:
    """Whether the run's local rule has control variates."""
    return spec.local.rule is LocalRule.SCAFFOLD


def control_segments(spec: RunSpec, n_parameters: int) -> tuple[Segment, ...]:
    """The segments that SCAFFOLD adds to a training round: ``control_update``, and ``counted``, 1 at each site.

    |x_k / L| and |c| are both at most clip_norm / L in the round where L is smallest: c is a mean of such quotients.
    The bound is the next power of two, so that the last bit of a cosine does not decide over a payload's digest.
    """
    largest = 2 * spec.privacy.clip_norm / smallest_sum_of_learning_rates(spec)
    _, exponent = math.frexp(largest * (1 + 2.0**-20))
    return (
        Segment(name=CONTROL_UPDATE, kind=SegmentKind.UPDATE, length=n_parameters, bound=math.ldexp(1.0, exponent)),
        Segment(name=COUNTED, kind=SegmentKind.COUNT, length=1, bound=1.0),
    )


def control_of(server: Mapping[str, NDArray[np.float32]], layout: AdapterLayout) -> dict[str, Float32Array]:
    """The server's control variate c in a public state: the layout's tensors; zeros before the first round.

    Raises:
        AdapterTensorError: it is not of this layout.
    """
    found = {name.removeprefix(_PREFIX): array for name, array in server.items() if name.startswith(_PREFIX)}
    if not found:
        return {tensor.name: np.zeros(tensor.shape, dtype=np.float32) for tensor in layout.tensors}
    layout.check(found)
    return found


def control_step(update: Float32Array, control: Float32Array, *, spec: RunSpec, round_index: int) -> Float32Array:
    """A site's dc_k = -c - x_k / L, float32, shape (d,).

    Args:
        update: x_k, float32, shape (d,), already clipped to ``clip_norm``.
        control: c, float32, shape (d,).
        spec: the run.
        round_index: the round, whose learning rates are summed.
    """
    step = np.divide(update, np.float32(-sum_of_learning_rates(spec, round_index=round_index)), dtype=np.float32)
    return np.subtract(step, control, out=step)


def check_control(
    sums: Mapping[str, SumValues],
    server: Mapping[str, NDArray[np.float32]],
    *,
    spec: RunSpec,
    layout: AdapterLayout,
    payload: PayloadLayout,
    round_index: int,
    n_sites: int,
) -> None:
    """Refuse a control sum that does not follow from the update's: sum f_k dc_k = -sum f_k x_k / L - c sum f_k.

    Must be asked before either sum is used up.

    Raises:
        ImplausibleSumError: they differ by more than encoding and rounding of ``n_sites`` sites can explain.
        AdapterTensorError: the state's control variate is not of this layout.
    """
    control = control_of(server, layout)
    rates = sum_of_learning_rates(spec, round_index=round_index)
    factors = int(sums["weight"][:1][0]) / spec.privacy.weight_cap
    largest = max(float(np.abs(array).max()) for array in control.values())
    tolerance = (
        sum_error_bound(payload, CONTROL_UPDATE, n_sites)
        + sum_error_bound(payload, "adapter_update", n_sites) / rates
        + n_sites * _ROUNDING * (spec.privacy.clip_norm / rates + largest)
    )
    offset = 0
    for tensor in layout.tensors:
        flat = control[tensor.name].reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            place = slice(offset + start, offset + start + part.size)
            expected = np.multiply(part, -factors, dtype=np.float64) - sums["adapter_update"][place] / rates
            if not float(np.abs(sums[CONTROL_UPDATE][place] - expected).max()) <= tolerance:
                message = "the control variates do not follow from the updates"
                raise ImplausibleSumError(message, segment=CONTROL_UPDATE, tensor=tensor.name)
        offset += flat.size


def fold_control(
    server: Mapping[str, NDArray[np.float32]], mean_step: Float32Array, *, layout: AdapterLayout
) -> dict[str, Float32Array]:
    """``c + mean_step`` as tensors of the server's state, one float32 addition an element, over ``mean_step``."""
    steps = layout.unflatten(mean_step, is_shared=True)
    control = control_of(server, layout)
    return {_PREFIX + name: np.add(control[name], step, out=step) for name, step in steps.items()}
