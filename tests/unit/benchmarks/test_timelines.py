from __future__ import annotations

from benchmarks.timeline_arms import CellFigures
from benchmarks.timelines import rows_of, site_rows_of


def cell(p1: float, **sites: float) -> dict[str, object]:
    of_sites = {
        name: CellFigures(p1=value, p3=value, p5=value, loss=None, worst_p5=None) for name, value in sites.items()
    }
    return CellFigures(p1=p1, p3=0.5, p5=0.5, loss=1.0, worst_p5=None, sites=of_sites).to_document()


CELLS = {
    "released/federated/seed 7": cell(0.4),
    "released/local-only/seed 7": cell(0.2, a=0.1, b=0.3),
    "released/local-only/seed 8": cell(0.3, a=0.2, b=0.4),
    "all codes/local-only/seed 7": cell(0.9, a=0.9, b=0.9),
}


def test_each_lone_site_has_a_row_over_the_seeds() -> None:
    # 0.1 and 0.2: mean 0.15, sample deviation 0.1 / sqrt 2.
    assert site_rows_of(CELLS, "released") == [
        "| released, local-only | P@1 | P@3 | P@5 | loss |",
        "|---|---|---|---|---|",
        "| a | 0.150 ± 0.071 | 0.150 ± 0.071 | 0.150 ± 0.071 | — |",
        "| b | 0.350 ± 0.071 | 0.350 ± 0.071 | 0.350 ± 0.071 | — |",
    ]
    assert "| federated | 0.400 | 0.500 | 0.500 | 1.000 | — |" in rows_of(CELLS, "released")


def test_cells_of_before_sites_were_kept_have_no_rows_of_sites() -> None:
    assert site_rows_of({"released/local-only/seed 7": cell(0.2)}, "released") == []
