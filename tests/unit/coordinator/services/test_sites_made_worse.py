"""How many sites an adapter makes worse, through whole runs of the real engine and real masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from coordinator_engine_lab import EngineLab

from coordinator.rounds.instructions import RoundRef

MakeLab = Callable[..., EngineLab]

COMPARED = {"evaluation.metrics": ["loss", "sites-made-worse"]}
N_UNITS = 11
THEN = 20.0
"""The summed loss of adapter v0 at every site, of 11 units."""
NOW = {
    "a-site": (20.0, 21.0, 19.0),
    "b-site": (20.0, 12.0, 12.0),
    "c-site": (20.0, 22.0, 24.0),
    "d-site": (20.0, 16.0, 8.0),
}
"""The summed loss of each site under the adapters v0, v1 and v2."""


def lab_of(make_lab: MakeLab, *names: str) -> EngineLab:
    lab = make_lab(*names, rounds=2, changes=COMPARED)

    def evaluates(name: str) -> Callable[[dict[str, np.ndarray], RoundRef], None]:
        def write(raw: dict[str, np.ndarray], ref: RoundRef) -> None:
            raw["eval_loss_sum"] = np.array([NOW[name][ref.round_index]])
            raw["initial_loss_sum"] = np.array([THEN])
            raw["initial_tokens"] = np.array([N_UNITS], np.int64)

        return write

    for name, site in lab.sites.items():
        site.evaluates = evaluates(name)
    return lab


def figures_of(lab: EngineLab, index: int, attempt: int = 0) -> tuple[float, float, float]:
    """The mean loss of a round, how many sites were made worse, and of how many."""
    report = lab.round(index, attempt).report
    assert report is not None
    return report["eval_loss"], report["metrics"]["sites-made-worse"], report["metrics"]["sites-compared"]


@pytest.mark.parametrize("restart_each_step", [False, True])
async def test_run_tells_in_each_round_how_many_sites_do_worse(make_lab: MakeLab, restart_each_step: bool) -> None:
    lab = lab_of(make_lab, "a-site", "b-site", "c-site")
    await lab.settle(restart_each_step=restart_each_step)
    assert lab.run().state == "COMPLETED"
    # Means of 33 units: 60, then 55 with two that lose, then 55 with one, though the mean says the same as before.
    assert figures_of(lab, 0) == (pytest.approx(60 / 33, abs=1e-4), 0.0, 3.0)
    assert figures_of(lab, 1) == (pytest.approx(55 / 33, abs=1e-4), 2.0, 3.0)
    assert figures_of(lab, 2) == (pytest.approx(55 / 33, abs=1e-4), 1.0, 3.0)


async def test_site_that_joins_late_is_compared_like_every_other(make_lab: MakeLab) -> None:
    """Else the flags of a sum would be those of fewer sites than it is over, and everybody would know of which."""
    lab = lab_of(make_lab, "a-site", "b-site", "c-site", "d-site")
    late = lab.sites["d-site"]  # type: ignore[index]
    late.is_lost = True
    await lab.live(8000, until=lambda: lab.run().next_round_index == 1)
    late.is_lost = False
    await lab.live(8000, until=lambda: lab.run().state == "COMPLETED")
    await lab.settle()
    assert figures_of(lab, 0)[1:] == (0.0, 3.0)
    assert figures_of(lab, 2)[1:] == (1.0, 4.0)
