"""One cell of a study's table: an arm, a site, a seed, the setting it trained with, and what it came to. Pure.

A cell keeps sums, not means: loss and units of each site's held-out records, from which every figure of a page follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.studies.errors import TableUnreadableError
from fl_protocol.spec.metrics import EvaluationTotals
from wardround.studies.description import Arm


class Phase(StrEnum):
    """What a cell is for."""

    SEARCH = "search"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CellKey:
    """Which cell. ``site``: whose records alone were trained on, or by the arm ``without`` alone not; else empty.

    A cell of the search is one of several settings, so they are part of its name; a cell of the table has the chosen.
    """

    phase: Phase
    arm: Arm
    site: str
    seed: int
    learning_rate: float
    steps: int

    @property
    def place(self) -> tuple[object, ...]:
        """Where the cell stands: two cells of one place exclude each other."""
        setting = (self.learning_rate, self.steps) if self.phase is Phase.SEARCH else ()
        return (self.phase.value, self.arm.value, self.site, self.seed, *setting)

    def sentence(self) -> str:
        """The cell for people."""
        word = "" if self.arm is Arm.WITHOUT else "at "
        site = f" {word}{self.site}" if self.site else ""
        setting = f", rate {self.learning_rate:g}, {self.steps} steps a round" if self.phase is Phase.SEARCH else ""
        return f"{self.phase.value}: {self.arm.value}{site}, seed {self.seed}{setting}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A filled cell.

    Attributes:
        key: which.
        settings_sha256: of everything that its figures follow from.
        common_sha256: of that part of the settings that all cells share.
        optimiser_steps: how many steps each adapter took that is in the arm's result.
        sites: sums by the site whose held-out records were evaluated.
        update_norms: L2 norm of every site's update in every round, before clipping.
        seconds: that training and evaluation took.
    """

    key: CellKey
    settings_sha256: str
    common_sha256: str
    optimiser_steps: int
    sites: Mapping[str, EvaluationTotals]
    update_norms: tuple[float, ...]
    seconds: float

    def to_document(self) -> dict[str, object]:
        """As it stands in the table's document."""
        return {
            "phase": self.key.phase.value,
            "arm": self.key.arm.value,
            "site": self.key.site,
            "seed": self.key.seed,
            "learning_rate": self.key.learning_rate,
            "steps": self.key.steps,
            "settings_sha256": self.settings_sha256,
            "common_sha256": self.common_sha256,
            "optimiser_steps": self.optimiser_steps,
            "evaluated": {site: _document_of(sums) for site, sums in self.sites.items()},
            "update_norms": [round(norm, 4) for norm in self.update_norms],
            "seconds": round(self.seconds, 1),
        }


def cell_from_document(document: object) -> Cell:
    """Read a cell.

    Raises:
        TableUnreadableError: it is none.
    """
    try:
        return _cell_from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = "a cell of the table cannot be read"
        raise TableUnreadableError(message, advice="Name another file with --table.", reason=str(error)[:80]) from error


def _cell_from_document(document: object) -> Cell:
    if not isinstance(document, Mapping):
        raise TypeError("no object")
    key = CellKey(
        phase=Phase(document["phase"]),
        arm=Arm(document["arm"]),
        site=str(document["site"]),
        seed=int(document["seed"]),
        learning_rate=float(document["learning_rate"]),
        steps=int(document["steps"]),
    )
    return Cell(
        key=key,
        settings_sha256=str(document["settings_sha256"]),
        common_sha256=str(document["common_sha256"]),
        optimiser_steps=int(document["optimiser_steps"]),
        sites={str(site): _sums_from_document(sums) for site, sums in document["evaluated"].items()},
        update_norms=tuple(float(norm) for norm in document["update_norms"]),
        seconds=float(document["seconds"]),
    )


def _sums_from_document(document: Mapping[str, object]) -> EvaluationTotals:
    counts = document["counts"]
    loss_sum, n_units, n_records = document["loss_sum"], document["n_units"], document["n_records"]
    if not isinstance(counts, Mapping) or not isinstance(n_units, int) or not isinstance(n_records, int):
        raise TypeError("no sums")
    if not isinstance(loss_sum, int | float) or not math.isfinite(loss_sum):
        raise TypeError("no loss")
    return EvaluationTotals(
        loss_sum=float(loss_sum),
        n_units=n_units,
        n_records=n_records,
        counts={str(name): int(count) for name, count in counts.items()},
    )


def _document_of(sums: EvaluationTotals) -> dict[str, object]:
    return {
        "loss_sum": sums.loss_sum,
        "n_units": sums.n_units,
        "n_records": sums.n_records,
        "counts": dict(sums.counts),
    }


def add_sums(parts: Mapping[str, EvaluationTotals]) -> EvaluationTotals:
    """The sums over all sites' records: one pooled held-out set."""
    names = sorted({name for part in parts.values() for name in part.counts})
    return EvaluationTotals(
        loss_sum=math.fsum(part.loss_sum for part in parts.values()),
        n_units=sum(part.n_units for part in parts.values()),
        n_records=sum(part.n_records for part in parts.values()),
        counts={name: sum(part.counts.get(name, 0) for part in parts.values()) for name in names},
    )
