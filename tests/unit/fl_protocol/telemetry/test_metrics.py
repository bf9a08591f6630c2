from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fl_protocol.telemetry import site_metrics
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.meter import Meter, Reading
from fl_protocol.telemetry.metric import Label, Metric, MetricKind, MetricMalformedError, Unit
from fl_protocol.telemetry.site_metrics import SITE_METRICS, refusal_label, rule_label

BOTH = (*COORDINATOR_METRICS, *SITE_METRICS)
ABOUT_DATA = re.compile(r"loss|record|patient|norm|epsilon|accuracy|gradient|weight|sample|text|path")


def exposed(meter: Meter) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(meter.exposition().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def counter() -> Metric:
    label = Label(name="kind", values=("a", "b"))
    return Metric(name="wardround_site_things_total", kind=MetricKind.COUNTER, help="Things.", labels=(label,))


def test_names_are_one_each_and_of_their_side() -> None:
    names = [metric.name for metric in BOTH]
    assert len(set(names)) == len(names)
    assert all(metric.name.startswith("wardround_coordinator_") for metric in COORDINATOR_METRICS)
    assert all(metric.name.startswith("wardround_site_") for metric in SITE_METRICS)
    assert all((metric.help.endswith(".") and metric.help[0].isupper()) or metric.help[0].isdigit() for metric in BOTH)


def test_no_metric_of_a_site_is_about_data() -> None:
    # `policy_denials` may name the rule by which a dataset was too small: that is the policy's word, and one bit.
    for metric in SITE_METRICS:
        assert not ABOUT_DATA.search(metric.name.removesuffix("_recording")), metric.name
        for label in metric.labels:
            assert label.values or label.name == "version", (metric.name, label.name)


def test_every_listed_constant_is_in_its_list() -> None:
    from fl_protocol.telemetry import coordinator_metrics

    for module, listed in ((coordinator_metrics, COORDINATOR_METRICS), (site_metrics, SITE_METRICS)):
        made = {value.name for value in vars(module).values() if isinstance(value, Metric)}
        assert made == {metric.name for metric in listed}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "wardround_site_things", "kind": MetricKind.COUNTER},
        {"name": "wardround_site_things_total", "kind": MetricKind.GAUGE},
        {"name": "things_total", "kind": MetricKind.COUNTER},
        {"name": "wardround_site_age", "kind": MetricKind.GAUGE, "unit": Unit.SECONDS},
        {"name": "wardround_site_age_seconds", "kind": MetricKind.HISTOGRAM, "unit": Unit.SECONDS},
        {"name": "wardround_site_age_seconds", "kind": MetricKind.HISTOGRAM, "buckets": (2.0, 1.0)},
    ],
)
def test_metric_whose_name_says_something_else_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MetricMalformedError):
        Metric(help="Things.", **wrong)  # type: ignore[arg-type]


def test_counter_with_known_labels_begins_at_zero_and_counts(counter: Metric) -> None:
    meter = Meter((counter,))
    assert exposed(meter) == {
        ("wardround_site_things_total", (("kind", "a"),)): 0.0,
        ("wardround_site_things_total", (("kind", "b"),)): 0.0,
    }
    meter.count(counter, "a")
    meter.count(counter, "a", by=2)
    assert exposed(meter)["wardround_site_things_total", (("kind", "a"),)] == 3.0


def test_name_that_is_not_listed_is_refused(counter: Metric) -> None:
    with pytest.raises(KeyError):
        Meter(()).count(counter, "a")


def test_histogram_counts_a_duration_in_its_bucket() -> None:
    waits = Metric(
        name="wardround_site_wait_seconds",
        kind=MetricKind.HISTOGRAM,
        help="Waits.",
        unit=Unit.SECONDS,
        buckets=(1.0, 5.0),
    )
    meter = Meter((waits,))
    meter.observe(waits, 3.0)
    found = exposed(meter)
    assert found["wardround_site_wait_seconds_bucket", (("le", "1.0"),)] == 0.0
    assert found["wardround_site_wait_seconds_bucket", (("le", "5.0"),)] == 1.0
    assert found["wardround_site_wait_seconds_sum", ()] == 3.0


def test_reading_is_asked_for_at_each_scrape() -> None:
    level = Metric(name="wardround_site_level", kind=MetricKind.GAUGE, help="Level.", is_read_at_scrape=True)
    asked: list[float] = []

    def read() -> list[Reading]:
        asked.append(float(len(asked)))
        return [Reading(metric=level, value=asked[-1])]

    meter = Meter((level,))
    meter.read_at_scrape(read)
    assert asked == []
    assert exposed(meter)["wardround_site_level", ()] == 0.0
    assert exposed(meter)["wardround_site_level", ()] == 1.0


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ("datasets.rare-disease-2024.min_records", "datasets.*.min_records"),
        ("datasets.a.b.consent", "datasets.*.consent"),
        ("hours.train", "hours.train"),
        ("something-new", "other"),
        ("datasets.x.something-new", "other"),
    ],
)
def test_rule_becomes_a_label_without_the_datasets_name(rule: str, label: str) -> None:
    assert rule_label(rule) == label


def test_refusal_becomes_one_of_the_list_whatever_was_said() -> None:
    assert refusal_label("site-paused") == "site-paused"
    assert refusal_label("datasets.rare.expires_on") == "policy"
    assert refusal_label("the patient's name") == "other"
