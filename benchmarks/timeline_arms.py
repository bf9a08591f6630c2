"""The arms of the study trial-timelines: what each trains on, by the trainer's own code, and how each is evaluated."""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from fl_protocol.codec.fixed_point import clip_l2
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.metrics import EvaluationTotals, Metric, ranking_count, values_of
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.spec.seeds import training_seed
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapter_io import initial_adapter, load_adapter, read_adapter
from site_agent.training.code_list import count_patients, published_layout, vocabulary_of_state
from site_agent.training.data import Dataset, Record, split_dataset, split_hash
from site_agent.training.device import choose_compute
from site_agent.training.exchange.fedavg_lora import NOT_EVALUATED, EvaluationSums
from site_agent.training.formats import format_called
from site_agent.training.progress import ProgressReporter
from site_agent.training.recipe import evaluate, local_steps, train
from site_agent.training.tasks.concept_timeline import TimelineTask, load_timeline_task
from site_agent.training.tasks.drawing import FitCounts, encode_records, sample_examples
from site_agent.training.timeline_base import TimelineShape, make_timeline_base
from site_agent.training.timelines.baselines import Baseline, CoOccurrence, Popularity
from site_agent.training.timelines.encoding import TimelineExample
from site_agent.training.timelines.ranking import Novelty, RankingCounts, Scope, count_timeline, rank_codes
from site_agent.training.timelines.timeline import Timeline
from site_agent.training.timelines.vocabulary import Vocabulary, read_vocabulary

STUDY = Path(__file__).parent.parent / "examples" / "trial-timelines"
ARMS = ("federated", "pooled", "local-only")
KS = (1, 3, 5)
POOLED = SiteId("pooled")
VALIDATION_FRACTION = 0.2
"""Of the training patients, by the place of their hash among those that are not held out."""

Adapter = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSite:
    """One site's patients: those to train on, those kept aside for the search, those held out."""

    name: SiteId
    n_records: int
    training: tuple[Record, ...]
    validation: tuple[Record, ...]
    held_out: tuple[TimelineExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFigures:
    """One arm from one seed: over the pooled held-out set, and at the site where it is worst."""

    p1: float
    p3: float
    p5: float
    loss: float | None
    worst_p5: float | None
    update_norm: float | None = None

    def to_document(self) -> dict[str, object]:
        """As it stands in the table's file."""
        figures = {
            "p1": self.p1, "p3": self.p3, "p5": self.p5, "loss": self.loss, "worst_p5": self.worst_p5,
            "update_norm": self.update_norm,
        }  # fmt: skip
        return {name: None if value is None else round(value, 4) for name, value in figures.items()}


class Bench:
    """The study over one vocabulary, one model for all arms."""

    def __init__(self, spec: RunSpec, task: TimelineTask, sites: Sequence[BenchSite], scratch: Path) -> None:
        """Keep what all cells share."""
        self.spec = spec
        self.task = task
        self.sites = sites
        self._progress = ProgressReporter(scratch)
        self._norms: list[float] = []

    def describe(self) -> str:
        """What there is to learn from."""
        held_out = [example for site in self.sites for example in site.held_out]
        return (
            f"{len(self.task.vocabulary.codes)} codes, {self.task.layout.n_parameters} parameters, "
            f"{len(self.sites)} sites, {sum(len(site.training) for site in self.sites)} patients to train on, "
            f"{len(held_out)} held out with {sum(len(example.targets) - 1 for example in held_out)} predictions"
        )

    def run(self, arm: str, spec: RunSpec) -> CellFigures:
        """One arm from the spec's seed, evaluated on the held-out patients."""
        held_out = {site.name: site.held_out for site in self.sites}
        return self._figures(arm, spec, {site.name: site.training for site in self.sites}, held_out)

    def search_cell(self, arm: str, seed: int, rate: float, rounds: int) -> dict[str, object]:
        """One arm at one setting, trained without the validation patients and evaluated on them."""
        spec = replace(self.spec, rounds=rounds, local=replace(self.spec.local, seed=seed, learning_rate=rate))
        training, validation = {}, {}
        for site in self.sites:
            kept = set(map(id, site.validation))
            training[site.name] = tuple(record for record in site.training if id(record) not in kept)
            validation[site.name] = _examples(site.validation, self.task)
        return self._figures(arm, spec, training, validation).to_document()

    def _figures(
        self,
        arm: str,
        spec: RunSpec,
        training: Mapping[SiteId, tuple[Record, ...]],
        judged_on: Mapping[SiteId, tuple[TimelineExample, ...]],
    ) -> CellFigures:
        self._norms = []
        usable = {name: records for name, records in training.items() if _examples(records, self.task)}
        initial = initial_adapter(self.task.layout, spec.local.seed).adapter
        match arm:
            case "federated":
                found = self._federate(spec, initial, usable)
                sums = {name: self._evaluate(found, examples) for name, examples in judged_on.items()}
            case "pooled":
                everybody = tuple(record for records in usable.values() for record in records)
                found = self._alone(spec, initial, POOLED, everybody)
                sums = {name: self._evaluate(found, examples) for name, examples in judged_on.items()}
            case _:
                return self._local_only(spec, initial, usable, judged_on)
        return figures_of(sums, max(self._norms, default=None))

    def _local_only(
        self,
        spec: RunSpec,
        initial: Adapter,
        training: Mapping[SiteId, tuple[Record, ...]],
        judged_on: Mapping[SiteId, tuple[TimelineExample, ...]],
    ) -> CellFigures:
        """The mean over sites of a model that each trained alone, each judged on all sites' patients."""
        figures: list[CellFigures] = []
        for name, records in training.items():
            adapter = self._alone(spec, initial, name, records)
            sums = {other: self._evaluate(adapter, examples) for other, examples in judged_on.items()}
            figures.append(figures_of(sums, None))
        return CellFigures(
            p1=statistics.fmean(one.p1 for one in figures),
            p3=statistics.fmean(one.p3 for one in figures),
            p5=statistics.fmean(one.p5 for one in figures),
            loss=statistics.fmean(one.loss for one in figures if one.loss is not None),
            # Another question here: the site whose own model is worst for everybody.
            worst_p5=min(one.p5 for one in figures),
        )

    def _federate(self, spec: RunSpec, initial: Adapter, training: Mapping[SiteId, tuple[Record, ...]]) -> Adapter:
        """The global adapter after the run's rounds: clipped updates, weighted by records, plain mean."""
        layout = self.task.layout
        state = layout.flatten(dict(initial))
        n_records = {site.name: site.n_records for site in self.sites}
        for round_index in range(spec.rounds):
            total = np.zeros(layout.n_parameters, dtype=np.float64)
            weights = 0
            for name, records in training.items():
                local = self._train_round(spec, layout.unflatten(state), name, records, round_index=round_index)
                update = layout.flatten(dict(local)) - state
                self._norms.append(math.sqrt(float(update.astype(np.float64) @ update)))
                clipped, _ = clip_l2(update, spec.privacy.clip_norm)
                weight = min(n_records[name], spec.privacy.weight_cap)
                total += weight * clipped.astype(np.float64)
                weights += weight
            state = (state + total / weights).astype(np.float32)
        return layout.unflatten(state)

    def _alone(self, spec: RunSpec, initial: Adapter, name: SiteId, records: tuple[Record, ...]) -> Adapter:
        """As many steps on these records only."""
        adapter = initial
        for round_index in range(spec.rounds):
            adapter = self._train_round(spec, adapter, name, records, round_index=round_index)
        return adapter

    def _train_round(
        self, spec: RunSpec, start: Adapter, name: SiteId, records: tuple[Record, ...], *, round_index: int
    ) -> Adapter:
        load_adapter(self.task.module, dict(start), layout=self.task.layout)
        rule = local_steps(spec, round_index)
        seed = training_seed(run_seed=spec.local.seed, site_id=name, round_index=round_index, round_attempt=0)
        examples = sample_examples(records, self.task, n_examples=rule.n_examples, seed=seed, counts=FitCounts())
        train(self.task, examples, rule=rule, seed=seed, progress=self._progress)
        return read_adapter(self.task.module)

    def _evaluate(self, adapter: Adapter, examples: Sequence[TimelineExample]) -> EvaluationSums:
        if not examples:
            return NOT_EVALUATED
        load_adapter(self.task.module, dict(adapter), layout=self.task.layout)
        return evaluate(self.task, examples, progress=self._progress)


_METRICS = {k: Metric(f"precision-at-{k}-next-new") for k in KS}


def figures_of(sums: Mapping[SiteId, EvaluationSums], update_norm: float | None) -> CellFigures:
    """The figures of all sites together, and the worst site's P@5 among those with at least ten predictions."""
    pooled = _values(list(sums.values()))
    enough = [one for one in sums.values() if one.counts.get(ranking_count("next", "new", "positions"), 0) >= 10]
    worst = min((_values([one])[Metric.PRECISION_AT_5_NEXT_NEW] for one in enough), default=None)
    return CellFigures(
        p1=pooled[_METRICS[1]],
        p3=pooled[_METRICS[3]],
        p5=pooled[_METRICS[5]],
        loss=pooled.get(Metric.LOSS),
        worst_p5=worst,
        update_norm=update_norm,
    )


def _values(sums: Sequence[EvaluationSums]) -> dict[str, float]:
    names = {name for one in sums for name in one.counts}
    totals = EvaluationTotals(
        loss_sum=sum(one.loss_sum for one in sums),
        n_units=sum(one.n_tokens for one in sums),
        n_records=sum(one.n_records for one in sums),
        counts={name: sum(one.counts.get(name, 0) for one in sums) for name in names},
    )
    return values_of([Metric.LOSS, *_METRICS.values()], totals)


def baseline_figures(bench: Bench) -> dict[str, CellFigures]:
    """Popularity and co-occurrence of all sites' training patients together, on the same held-out set."""
    vocabulary = bench.task.vocabulary
    first, n_codes = vocabulary.first_code_id, len(vocabulary.codes)
    # They also get the patients who have too few codes for the model: what they can use is not kept from them.
    training = [
        [vocabulary.id_of_code[code] - first for code in record.codes if code in vocabulary.id_of_code]
        for site in bench.sites
        for record in site.training
        if isinstance(record, Timeline)
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
        for example in site.held_out:
            codes = [token_id - first for token_id in example.code_ids]
            lists = rank_codes(baseline.scores(codes), codes, Novelty.NEW)
            counts += count_timeline(lists, codes, example.days, scope=Scope.NEXT, novelty=Novelty.NEW, range_days=0)
        by_site.append(counts)
    total = sum(by_site, RankingCounts())
    p1, p3, p5 = (total.precision_at(k) or 0.0 for k in KS)
    worst = min(counts.precision_at(5) or 0.0 for counts in by_site if counts.n_positions >= 10)
    return CellFigures(p1=p1, p3=p3, p5=p5, loss=None, worst_p5=worst)


def prepare_bench(folder: Path, *, is_released: bool) -> Bench:
    """The study's datasets, its vocabulary (released by a vocabulary run, or the whole list), its base and its spec."""
    data = folder / "data"
    _prepare(data)
    vocabulary_spec = parse_run_spec(yaml.safe_load((STUDY / "vocabulary.yaml").read_bytes()))
    document = yaml.safe_load((STUDY / "run.yaml").read_bytes())
    names = parse_run_spec(document).cohort.names
    datasets = {
        name: format_called("timeline-rows").read(data / f"{name}.csv", patient_field="patient_id") for name in names
    }
    codes = read_vocabulary(data / "codes.txt")
    chosen = released_vocabulary(vocabulary_spec, datasets, codes) if is_released else codes
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
    sites = [_site(name, dataset, spec, task) for name, dataset in datasets.items()]
    return Bench(spec, task, sites, place)


def released_vocabulary(spec: RunSpec, datasets: Mapping[SiteId, Dataset], codes: Vocabulary) -> Vocabulary:
    """What a vocabulary run over these sites releases: its own halves, and a plain sum in the middle."""
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    layout = published_layout(spec, len(codes.codes))
    payloads = []
    for dataset in datasets.values():
        training = [record for record in _split(dataset, spec)[0] if isinstance(record, Timeline)]
        raw = {"code_patients": count_patients(training, codes.codes)}
        payloads.append(
            algorithm.weigh(raw, n_records=len(dataset.records), spec=spec, layout=layout, kind=RoundKind.TRAIN)
        )
    sums = {name: sum(payload[name] for payload in payloads) for name in payloads[0]}
    state = PublicState(version=0, adapter={"published": np.zeros(len(codes.codes), dtype=np.float32)})
    folded = algorithm.fold(
        sums,
        state,
        spec=spec,
        layout=layout,
        kind=RoundKind.TRAIN,
        n_sites=len(payloads),  # type: ignore[arg-type]
    )
    return vocabulary_of_state(folded.state, codes.codes)


def _site(name: SiteId, dataset: Dataset, spec: RunSpec, task: TimelineTask) -> BenchSite:
    training, held_out = _split(dataset, spec)
    fraction = spec.evaluation.holdout_fraction
    limit = int((fraction + VALIDATION_FRACTION * (1 - fraction)) * 2**64)
    return BenchSite(
        name=name,
        n_records=len(dataset.records),
        training=training,
        validation=tuple(record for record in training if split_hash(record) < limit),
        held_out=_examples(held_out, task),
    )


def _split(dataset: Dataset, spec: RunSpec) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    evaluation = spec.evaluation
    split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
    return split.training, split.held_out


def _examples(records: Sequence[Record], task: TimelineTask) -> tuple[TimelineExample, ...]:
    encoded = encode_records(records, task, FitCounts())
    return tuple(example for example in encoded if isinstance(example, TimelineExample))


def _prepare(folder: Path) -> None:
    """Make the datasets by the study's own program."""
    if folder.is_dir():
        return
    location = importlib.util.spec_from_file_location("trial_timelines_prepare", STUDY / "prepare.py")
    if location is None or location.loader is None:
        message = "the study's preparation cannot be loaded"
        raise RuntimeError(message)
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module
    location.loader.exec_module(module)
    module.prepare(folder)
