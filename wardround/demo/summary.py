"""What a demonstration found: one document for machines, one page for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from wardround.cli.shell import size_text
from wardround.demo.live_table import number_text, rounds_table
from wardround.demo.picture import RoundLine
from wardround.demo.shown_metric import LOSS, MetricChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One held-out prompt, and what base model and released adapter say to it."""

    prompt: str
    reference: str
    before: str
    after: str

    def to_document(self) -> dict[str, str]:
        """As ``--json`` tells it."""
        return {"prompt": self.prompt, "reference": self.reference, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """A demonstration that came to its end. Invariant: the release and every log were verified."""

    run_id: str
    study: str
    sites: tuple[str, ...]
    base_model: str
    base_model_sha256: str
    rounds: tuple[RoundLine, ...]
    eval_loss_before: float | None
    eval_loss_after: float | None
    metrics: dict[str, object]
    change: MetricChange
    generation: Generation | None
    release_dir: Path
    work_dir: Path
    audit_rows: dict[str, int]
    seconds: float

    def to_document(self) -> dict[str, object]:
        """The document of ``wardround demo --json``."""
        return {
            "run_id": self.run_id,
            "study": self.study,
            "sites": list(self.sites),
            "base_model": self.base_model,
            "base_model_sha256": self.base_model_sha256,
            "secure_aggregation": True,
            "rounds": [line.to_document() for line in self.rounds],
            "eval_loss_before": self.eval_loss_before,
            "eval_loss_after": self.eval_loss_after,
            "metrics": self.metrics,
            "metric": self.change.to_document(),
            "generation": None if self.generation is None else self.generation.to_document(),
            "release_dir": str(self.release_dir),
            "work_dir": str(self.work_dir),
            "audit_verified": True,
            "audit_rows": self.audit_rows,
            "seconds": round(self.seconds, 1),
        }


def print_report(report: DemoReport, console: Console, *, has_live_table: bool) -> None:
    """The page for people. On a terminal the live table stands above it already."""
    console.print()
    if not has_live_table:
        console.print(rounds_table(report.rounds))
        console.print()
    for label, text in _lines_of(report):
        console.print(Text.assemble((f"{label:<15} ", "bold"), text), soft_wrap=True)
    generation = report.generation
    if generation is None:
        return
    console.print()
    for label, text in (
        ("Question", generation.prompt),
        ("Base model", generation.before),
        ("Fine-tuned", generation.after),
        ("Reference", generation.reference),
    ):
        console.print(Text.assemble((f"{label:<15} ", "bold"), " ".join(text.split()) or "(nothing)"), soft_wrap=True)


def _lines_of(report: DemoReport) -> tuple[tuple[str, str], ...]:
    counted = sum(line.bytes_up for line in report.rounds)
    rows = ", ".join(f"{name} {n_rows}" for name, n_rows in report.audit_rows.items())
    name = report.change.metric.name
    shown = () if name == LOSS else ((name, f"{report.change.sentence()}, on the same records"),)
    return (
        ("Evaluation loss", _loss_sentence(report)),
        *shown,
        (
            "Left the sites",
            f"{size_text(counted)}: masked updates and the messages around them; no loss, count or norm of one site",
        ),
        ("Release", f"{report.release_dir} (signature and every file verified)"),
        ("Audit logs", f"all verified; rows: {rows}"),
        ("Time", f"{report.seconds:.0f} s"),
    )


def _loss_sentence(report: DemoReport) -> str:
    before, after = report.eval_loss_before, report.eval_loss_after
    pair = f"{number_text(before, '.4f')} before, {number_text(after, '.4f')} after"
    if not before or after is None:
        return pair
    return f"{pair} ({(after - before) / before:+.1%}), on held-out records of all sites, itself a secure sum"
