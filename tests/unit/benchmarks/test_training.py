from __future__ import annotations

import pytest

from benchmarks.studies.progress import Pace, Work
from benchmarks.studies.table_file import Table
from benchmarks.training import rows_of
from tests.unit.benchmarks.studies.cells_for_tests import cell
from wardround.studies.description import Arm, Better, ShownMetric

LOSS = ShownMetric(name="loss", unit="nats", better=Better.LOWER)
LOCAL_ALL = "held-out loss, local only, 18 steps, mean of sites"
LOCAL_OWN = "held-out loss, local only, each site's own records, mean of sites"


def rows(*, with_local: bool) -> dict[str, tuple[float, float | None]]:
    table = Table(study="s")
    table.put(cell(Arm.BEFORE, {"a": 5.0, "b": 5.0}, steps=0))
    table.put(cell(Arm.FEDERATED, {"a": 2.0, "b": 3.0}))
    if with_local:
        table.put(cell(Arm.LOCAL, {"a": 1.0, "b": 9.0}, site="a"))
        table.put(cell(Arm.LOCAL, {"a": 7.0, "b": 4.0}, site="b"))
    pace = Pace()
    pace.observe(Work(steps=4, records=0), 2.0)
    pace.observe(Work(steps=0, records=10), 5.0)
    found = rows_of(table, LOSS, pace, n_steps=18, clip_norm=8.0)
    return {row.name: (row.value, row.yardstick) for row in found}


def test_lone_site_is_judged_by_all_records_and_by_its_own() -> None:
    found = rows(with_local=True)
    # By all: a has (1 + 9) / 2, b has (7 + 4) / 2. By their own: 1 and 4, where the shared adapter has 2 and 3.
    assert found[LOCAL_ALL] == (pytest.approx((5.0 + 5.5) / 2), pytest.approx(2.5))
    assert found[LOCAL_OWN] == (pytest.approx(2.5), pytest.approx(2.5))
    assert found["seconds a step"][0] == pytest.approx(0.5)


def test_without_the_local_arm_there_is_no_row_of_it() -> None:
    assert not {LOCAL_ALL, LOCAL_OWN} & set(rows(with_local=False))
