"""The one figure that a study is judged by, before and after, out of what the run's sums say. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.documents import Document, optional_number_of, section_of, text_of
from wardround.studies.description import Better, ShownMetric

LOSS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """A metric under the initial and under the released adapter; None where it was not measured."""

    metric: ShownMetric
    before: float | None
    after: float | None

    @property
    def is_better(self) -> bool | None:
        """Whether the run improved it; None where that is not known."""
        if self.before is None or self.after is None:
            return None
        return self.metric.is_better(self.after, self.before)

    def to_document(self) -> dict[str, object]:
        """As ``demo --json`` tells it."""
        metric = self.metric
        return {
            "name": metric.name,
            "unit": metric.unit,
            "better": metric.better.value,
            "before": self.before,
            "after": self.after,
        }

    def sentence(self) -> str:
        """Both figures, and how much better or worse the second is."""
        before, after = self.before, self.after
        if before is None or after is None:
            return f"{_figure(before)} before, {_figure(after)} after"
        change = f" ({(after - before) / before:+.1%})" if before else ""
        wanted = "lower" if self.metric.better is Better.LOWER else "higher"
        unit = f"{self.metric.unit}, " if self.metric.unit else ""
        return f"{before:.4f} before, {after:.4f} after{change}; {unit}{wanted} is better"


def change_of(metric: ShownMetric, rounds: tuple[Document, ...]) -> MetricChange:
    """The metric in the first round that was evaluated, and in the evaluation that ended the run.

    Args:
        metric: which.
        rounds: of the run's figures, in order; round r evaluates the adapter that it received.
    """
    first = next((line for line in rounds if _value(metric, line) is not None), None)
    last = next((line for line in rounds if text_of(line, "kind") == "evaluate"), None)
    return MetricChange(
        metric=metric,
        before=None if first is None or first is last else _value(metric, first),
        after=None if last is None else _value(metric, last),
    )


def _value(metric: ShownMetric, line: Document) -> float | None:
    if metric.name == LOSS:
        return optional_number_of(line, "eval_loss")
    return optional_number_of(section_of(line, "metrics"), metric.name)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
