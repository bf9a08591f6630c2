"""Whether an adapter does worse at a site than the initial one did: two flags, summed over sites, in place of losses.

The worst site's loss is the largest of several figures, and no sum gives it. How many sites lose is a sum. A trainer
evaluates the adapter that it received and adapter v0 on the same held-out records, in the same job, so that every site
of a sum has both, whenever it joined: a site that could not compare would add a zero that everybody knows, and leave
the others' flags among fewer than the sum promises (decision 0070).

Who learns what: everybody learns how many of the counted sites were compared and how many were made worse; nobody
learns by how much. Which ones, all know where it is none or all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_protocol.folds.algorithm import RawPayloadInvalidError
from fl_protocol.spec.metrics import SITE_FLAGS, WORSE_BY

INITIAL_LOSS = "initial_loss_sum"
"""Raw, float64, shape (1,): the summed loss of adapter v0 on the held-out records, in nats. It goes no further."""
INITIAL_UNITS = "initial_tokens"
"""Raw, int64, shape (1,): the units that it is summed over."""


def flags_of(raw: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """``eval_compared`` and ``eval_made_worse`` of one site, int64, shape (1,), 0 or 1.

    Args:
        raw: of ``eval_loss_sum``, ``eval_tokens``, ``INITIAL_LOSS`` and ``INITIAL_UNITS``, checked for dtype and shape.

    Returns:
        Both 0 where nothing was evaluated. Otherwise the site is compared, and made worse where its mean loss is
        larger than that under adapter v0 by more than ``WORSE_BY``.

    Raises:
        RawPayloadInvalidError: a loss is not finite or negative, or the two are not over the same units.
    """
    n_units = int(raw["eval_tokens"][0])
    now, then = float(raw["eval_loss_sum"][0]), float(raw[INITIAL_LOSS][0])
    # NaN makes the comparison false.
    if not (0.0 <= now < math.inf and 0.0 <= then < math.inf):
        raise RawPayloadInvalidError("a loss is finite and not negative", segment=INITIAL_LOSS)
    if int(raw[INITIAL_UNITS][0]) != n_units:
        message = "the initial adapter was not evaluated on the same held-out records"
        raise RawPayloadInvalidError(message, segment=INITIAL_UNITS)
    is_compared = n_units > 0
    flags = {"compared": is_compared, "made_worse": is_compared and now - then > WORSE_BY * n_units}
    return {f"eval_{name}": np.array([int(flags[name])], dtype=np.int64) for name in SITE_FLAGS}
