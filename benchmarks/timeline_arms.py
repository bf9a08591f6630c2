"""The arms of the study trial-timelines: what each trains on, by the trainer's own code, and how each is evaluated."""

from __future__ import annotations

import importlib.util
import io
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.studies.arms import POOLED_SITE, ArmResult, train_alone, train_federated
from benchmarks.studies.progress import TableProgress
from benchmarks.studies.splits import SiteParts
from benchmarks.studies.workshop import Workshop
from fl_protocol.ids import SiteId
from fl_protocol.spec.metrics import EvaluationTotals, Metric, ranking_count, values_of
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.data import Dataset, split_dataset, split_hash
from site_agent.training.device import choose_compute
from site_agent.training.tasks.concept_timeline import TimelineTask, load_timeline_task
from site_agent.training.tasks.drawing import FitCounts, encode_records
from site_agent.training.timeline_base import TimelineShape, make_timeline_base
from site_agent.training.timelines.baselines import Baseline, CoOccurrence, Popularity
from site_agent.training.timelines.encoding import TimelineExample
from site_agent.training.timelines.ranking import Novelty, RankingCounts, Scope, count_timeline, rank_codes
from site_agent.training.timelines.timeline import Timeline
from site_agent.training.timelines.vocabulary import read_vocabulary

STUDY = Path(__file__).parent.parent / "examples" / "trial-timelines"
ARMS = ("federated", "pooled", "local-only")
KS = (1, 3, 5)
ENOUGH_PREDICTIONS = 10
"""A site with fewer says nothing of the worst site."""
VALIDATION_FRACTION = 0.2
"""Of the training patients, by the place of their hash among those that are not held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFigures:
    """One arm from one seed: over the pooled held-out set, and at the site where it is worst.

    ``sites``: of the local-only arm, each lone site's model by the site's name; all are judged by the same patients.
    """

    p1: float
    p3: float
    p5: float
    loss: float | None
    worst_p5: float | None
    update_norm: float | None = None
    sites: Mapping[str, CellFigures] = field(default_factory=dict)

    def to_document(self) -> dict[str, object]:
        """As it stands in the table's file."""
        figures = {
            "p1": self.p1, "p3": self.p3, "p5": self.p5, "loss": self.loss, "worst_p5": self.worst_p5,
            "update_norm": self.update_norm,
        }  # fmt: skip
        document: dict[str, object] = {
            name: None if value is None else round(value, 4) for name, value in figures.items()
        }
        if self.sites:
            document["sites"] = {name: one.to_document() for name, one in self.sites.items()}
        return document


Parts = SiteParts[Timeline]
Use = Callable[[Parts], tuple[Timeline, ...]]


class Bench:
    """The study over one vocabulary, one model for all arms."""

    def __init__(self, spec: RunSpec, task: TimelineTask, sites: Sequence[Parts], scratch: Path) -> None:
        """Keep what all cells share."""
        self.spec = spec
        self.task = task
        self.sites = sites
        # Nobody watches the steps: a cell is the unit of what is told.
        self._workshop = Workshop(task, private_folder=scratch, shown=TableProgress(io.StringIO()))

    def describe(self) -> str:
        """What there is to learn from."""
        held_out = [example for site in self.sites for example in examples_of(site.held_out, self.task)]
        return (
            f"{len(self.task.vocabulary.codes)} codes, {self.task.layout.n_parameters} parameters, "
            f"{len(self.sites)} sites, {sum(len(site.training) for site in self.sites)} patients to train on, "
            f"{len(held_out)} held out with {sum(len(example.targets) - 1 for example in held_out)} predictions"
        )

    def run(self, arm: str, spec: RunSpec) -> CellFigures:
        """One arm from the spec's seed, evaluated on the held-out patients."""
        return self._figures(arm, spec, lambda site: site.training, lambda site: site.held_out)

    def search_cell(self, arm: str, seed: int, rate: float, rounds: int) -> dict[str, object]:
        """One arm at one setting, trained without the validation patients and evaluated on them."""
        spec = replace(self.spec, rounds=rounds, local=replace(self.spec.local, seed=seed, learning_rate=rate))
        return self._figures(arm, spec, lambda site: site.fitting, lambda site: site.validation).to_document()

    def _figures(self, arm: str, spec: RunSpec, trained_on: Use, judged_on: Use) -> CellFigures:
        usable = [site for site in self.sites if examples_of(trained_on(site), self.task)]
        match arm:
            case "federated":
                found = train_federated(self._workshop, spec, usable, records_of=trained_on)
            case "pooled":
                everybody = tuple(record for site in usable for record in trained_on(site))
                found = train_alone(self._workshop, spec, site=POOLED_SITE, records=everybody)
            case _:
                return self._local_only(spec, usable, trained_on, judged_on)
        return self._judge(spec, found, judged_on)

    def _local_only(self, spec: RunSpec, usable: Sequence[Parts], trained_on: Use, judged_on: Use) -> CellFigures:
        """The mean over sites of a model that each trained alone, each judged on all sites' patients."""
        by_site = {
            site.name: self._judge(
                spec, train_alone(self._workshop, spec, site=site.name, records=trained_on(site)), judged_on
            )
            for site in usable
        }
        figures = list(by_site.values())
        return CellFigures(
            p1=statistics.fmean(one.p1 for one in figures),
            p3=statistics.fmean(one.p3 for one in figures),
            p5=statistics.fmean(one.p5 for one in figures),
            loss=statistics.fmean(one.loss for one in figures if one.loss is not None),
            # Another question here: the site whose own model is worst for everybody.
            worst_p5=min(one.p5 for one in figures),
            sites=by_site,
        )

    def _judge(self, spec: RunSpec, found: ArmResult, judged_on: Use) -> CellFigures:
        totals = [
            self._workshop.evaluate(spec, found.state.adapter, judged_on(site), training=site.training)
            for site in self.sites
        ]
        return figures_of(totals, max(found.update_norms))


_METRICS = {k: Metric(f"precision-at-{k}-next-new") for k in KS}


def figures_of(totals: Sequence[EvaluationTotals], update_norm: float | None) -> CellFigures:
    """The figures of all sites together, and the worst site's P@5 among those with at least ten predictions."""
    pooled = _values(totals)
    enough = [one for one in totals if one.counts[ranking_count("next", "new", "positions")] >= ENOUGH_PREDICTIONS]
    worst = min((_values([one])[Metric.PRECISION_AT_5_NEXT_NEW] for one in enough), default=None)
    return CellFigures(
        p1=pooled[_METRICS[1]],
        p3=pooled[_METRICS[3]],
        p5=pooled[_METRICS[5]],
        loss=pooled.get(Metric.LOSS),
        worst_p5=worst,
        update_norm=update_norm,
    )


def _values(totals: Sequence[EvaluationTotals]) -> dict[str, float]:
    together = EvaluationTotals(
        loss_sum=sum(one.loss_sum for one in totals),
        n_units=sum(one.n_units for one in totals),
        n_records=sum(one.n_records for one in totals),
        counts={name: sum(one.counts[name] for one in totals) for name in totals[0].counts},
    )
    return values_of([Metric.LOSS, *_METRICS.values()], together)


def baseline_figures(bench: Bench) -> dict[str, CellFigures]:
    """Popularity and co-occurrence of all sites' training patients together, on the same held-out set."""
    vocabulary = bench.task.vocabulary
    first, n_codes = vocabulary.first_code_id, len(vocabulary.codes)
    # They also get the patients who have too few codes for the model: what they can use is not kept from them.
    training = [
        [vocabulary.id_of_code[code] - first for code in record.codes if code in vocabulary.id_of_code]
        for site in bench.sites
        for record in site.training
    ]
    baselines: dict[str, Baseline] = {
        "popularity": Popularity(training, n_codes=n_codes),
        "co-occurrence": CoOccurrence(training, n_codes=n_codes),
    }
    return {name: _baseline_figures(bench, baseline) for name, baseline in baselines.items()}


def _baseline_figures(bench: Bench, baseline: Baseline) -> CellFigures:
    first = bench.task.vocabulary.first_code_id
    by_site: list[RankingCounts] = []
    for site in bench.sites:
        counts = RankingCounts()
        for example in examples_of(site.held_out, bench.task):
            codes = [token_id - first for token_id in example.code_ids]
            lists = rank_codes(baseline.scores(codes), codes, Novelty.NEW)
            counts += count_timeline(lists, codes, example.days, scope=Scope.NEXT, novelty=Novelty.NEW, range_days=0)
        by_site.append(counts)
    total = sum(by_site, RankingCounts())
    p1, p3, p5 = (total.precision_at(k) or 0.0 for k in KS)
    worst = min(counts.precision_at(5) or 0.0 for counts in by_site if counts.n_positions >= ENOUGH_PREDICTIONS)
    return CellFigures(p1=p1, p3=p3, p5=p5, loss=None, worst_p5=worst)


def prepare_bench(folder: Path, *, is_released: bool) -> Bench:
    """The study's datasets, its vocabulary (released by a vocabulary run, or the whole list), its base and its spec."""
    data = folder / "data"
    if not data.is_dir():
        _study_module("prepare").prepare(data)
    maker = _study_module("make_base")
    vocabulary_spec = parse_run_spec(yaml.safe_load((STUDY / "vocabulary.yaml").read_bytes()))
    document = yaml.safe_load((STUDY / "run.yaml").read_bytes())
    datasets = maker.read_sites(parse_run_spec(document), data)
    codes = read_vocabulary(data / "codes.txt")
    chosen = maker.released_vocabulary(vocabulary_spec, datasets, codes) if is_released else codes
    place = folder / ("released" if is_released else "all")
    place.mkdir()
    (place / "vocab.txt").write_bytes(chosen.to_bytes())
    shape = TimelineShape(max_length=int(document["local"]["max_length"]))
    made = make_timeline_base(place / "vocab.txt", out=place / "base", shape=shape, seed=int(document["local"]["seed"]))
    document["base_model"]["sha256"] = made["base_model_sha256"]
    document["task"]["vocabulary_sha256"] = chosen.sha256
    spec = parse_run_spec(document)
    torch.set_num_threads(1)
    task = load_timeline_task(place / "base", spec, choose_compute(DeviceChoice.CPU))
    sites = [_parts(name, dataset, spec) for name, dataset in datasets.items()]
    return Bench(spec, task, sites, place)


def _parts(name: SiteId, dataset: Dataset, spec: RunSpec) -> Parts:
    training, held_out = _split(dataset, spec)
    fraction = spec.evaluation.holdout_fraction
    limit = int((fraction + VALIDATION_FRACTION * (1 - fraction)) * 2**64)
    return SiteParts(
        name=name,
        n_records=len(dataset.records),
        training=training,
        held_out=held_out,
        fitting=tuple(record for record in training if split_hash(record) >= limit),
        validation=tuple(record for record in training if split_hash(record) < limit),
    )


def _split(dataset: Dataset, spec: RunSpec) -> tuple[tuple[Timeline, ...], tuple[Timeline, ...]]:
    evaluation = spec.evaluation
    split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
    return _timelines(split.training), _timelines(split.held_out)


def _timelines(records: Iterable[object]) -> tuple[Timeline, ...]:
    return tuple(record for record in records if isinstance(record, Timeline))


def examples_of(records: Sequence[Timeline], task: TimelineTask) -> tuple[TimelineExample, ...]:
    """What the model can use of some patients."""
    encoded = encode_records(records, task, FitCounts())
    return tuple(example for example in encoded if isinstance(example, TimelineExample))


def _study_module(name: str) -> Any:
    """A program of the study's folder: it is no package, so it has no types here."""
    location = importlib.util.spec_from_file_location(f"trial_timelines_{name}", STUDY / f"{name}.py")
    if location is None or location.loader is None:
        message = "a program of the study cannot be loaded"
        raise RuntimeError(message)
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module
    location.loader.exec_module(module)
    return module
