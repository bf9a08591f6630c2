"""What is shown while a run is under way: a line a site, a line a round; from each site's own status and from REST.

A site's loss is in the site's own folder and goes nowhere else (decision 3); the demonstration owns its sites and
looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.documents import (
    Document,
    integer_of,
    optional_number_of,
    optional_text_of,
    text_of,
    texts_of,
)

END_STATES = frozenset({"COMPLETED", "CANCELLED", "FAILED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLine:
    """What one site does now."""

    name: str
    state: str = "starting"
    activity: str | None = None
    round_index: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLine:
    """What one round did; losses are of all sites together, out of the secure sum."""

    index: int
    kind: str
    state: str
    reason: str | None
    counted_sites: tuple[str, ...]
    seconds: float | None
    train_loss: float | None
    eval_loss: float | None
    bytes_up: int
    bytes_down: int

    def to_document(self) -> dict[str, object]:
        """The round as ``demo --json`` tells it."""
        return {
            "index": self.index,
            "kind": self.kind,
            "state": self.state,
            "counted_sites": list(self.counted_sites),
            "seconds": self.seconds,
            "train_loss": self.train_loss,
            "eval_loss": self.eval_loss,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The whole federation at one moment."""

    run_state: str
    reason: str | None
    waits_for: str
    sites: tuple[SiteLine, ...]
    rounds: tuple[RoundLine, ...]
    seconds: float

    @property
    def has_ended(self) -> bool:
        """Whether the run will do nothing more."""
        return self.run_state in END_STATES


def site_line(name: str, status_file: Path) -> SiteLine:
    """A site's line out of its ``status.json``; a file that is not there yet, or half known, tells less."""
    try:
        status = json.loads(status_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return SiteLine(name=name)
    if not isinstance(status, Mapping):
        return SiteLine(name=name)
    return SiteLine(
        name=name,
        state=_text(status, "state") or "running",
        activity=_text(status, "activity"),
        round_index=_integer(status, "round_index"),
        step=_integer(status, "step"),
        steps=_integer(status, "steps"),
        loss=optional_number_of(status, "loss"),
    )


def round_lines(documents: Iterable[Document]) -> tuple[RoundLine, ...]:
    """The lines of the rounds, in their order."""
    return tuple(sorted((_round_line(document) for document in documents), key=lambda line: line.index))


def _round_line(document: Document) -> RoundLine:
    report = document.get("report")
    figures: Document = report if isinstance(report, Mapping) else {}
    return RoundLine(
        index=integer_of(document, "round_index"),
        kind=text_of(document, "kind"),
        state=text_of(document, "state"),
        reason=optional_text_of(document, "reason"),
        counted_sites=texts_of(document, "counted_sites"),
        seconds=optional_number_of(document, "seconds"),
        train_loss=optional_number_of(figures, "train_loss"),
        eval_loss=optional_number_of(figures, "eval_loss"),
        bytes_up=_integer(document, "bytes_up") or 0,
        bytes_down=_integer(document, "bytes_down") or 0,
    )


def _text(document: Document, key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) else None


def _integer(document: Document, key: str) -> int | None:
    value = document.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
