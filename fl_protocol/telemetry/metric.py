"""What a metric is: a name, a kind, a unit, its labels and the values that they may have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.errors import ProtocolError

_NAME = re.compile(r"wardround_(coordinator|site)_[a-z][a-z0-9_]*")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")

FAST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of a call's seconds; a long poll lasts up to half a minute."""
SLOW_S = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0)
"""Upper bounds of the seconds of a phase or a job: from a second to half a day."""


class MetricKind(StrEnum):
    """What the number does."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Unit(StrEnum):
    """What the number counts. The unit of a metric stands in its name."""

    SECONDS = "seconds"
    BYTES = "bytes"
    NONE = ""


class MetricMalformedError(ProtocolError):
    """The list holds a metric whose name says something else than the metric."""

    code = "metric-malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A label.

    Attributes:
        name: of the label.
        values: all that it may have; empty where they are names that people gave (a site's) or versions.
        source: whose word a value is.
    """

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Invariant: its name begins with its side, ends in ``_total`` exactly where it is a counter, and holds its unit.

    Attributes:
        name: as it is exposed.
        kind: what the number does.
        help: one sentence.
        labels: in order.
        unit: of the number.
        buckets: a histogram's upper bounds, rising.
        is_read_at_scrape: whether it is asked for when somebody looks, and not counted as it happens.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[Label, ...] = ()
    unit: Unit = Unit.NONE
    buckets: tuple[float, ...] = ()
    is_read_at_scrape: bool = False

    def __post_init__(self) -> None:
        """Hold the name to the metric."""
        is_counter = self.kind is MetricKind.COUNTER
        stem = self.name.removesuffix("_total").removesuffix("_left")
        if (
            _NAME.fullmatch(self.name) is None
            or is_counter != self.name.endswith("_total")
            or (self.unit is not Unit.NONE and not stem.endswith(f"_{self.unit.value}"))
            or (self.kind is MetricKind.HISTOGRAM) != bool(self.buckets)
            or list(self.buckets) != sorted(set(self.buckets))
            or any(_LABEL.fullmatch(label.name) is None for label in self.labels)
        ):
            raise MetricMalformedError("a metric's name, kind, unit and buckets do not fit each other", name=self.name)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of its labels, in order."""
        return tuple(label.name for label in self.labels)

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names under which its samples are exposed."""
        if self.kind is MetricKind.HISTOGRAM:
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.name,)
