"""The arms on a tiny model: the trainer's own numbers, FedAvg by its definition, nobody trained on who judges."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.studies.arms import POOLED_SITE, plain_sum, train_alone, train_federated
from benchmarks.studies.cells import CellKey, Phase
from benchmarks.studies.filling import Filling, fill_table
from benchmarks.studies.progress import TableProgress
from benchmarks.studies.splits import SiteParts, parts_of_site
from benchmarks.studies.table_file import Table
from benchmarks.studies.workshop import TrainedRound, Workshop
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.metrics import EvaluationTotals
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.seeds import training_seed
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import PAYLOAD_FILE, DeviceChoice
from site_agent.training.data import split_dataset
from site_agent.training.device import choose_compute
from site_agent.training.formats import format_called
from site_agent.training.shelf import ModelShelf
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import bound_spec, make_job, write_records
from wardround.studies.description import Arm, Better, SearchGrid, ShownMetric

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

N_RECORDS = {"a": 40, "b": 61, "c": 97}
CLIP_NORM = 0.4
"""Below what some of these updates measure, so that clipping is part of what is compared."""


class Listening(Workshop):
    """A workshop that remembers whose records each adapter was trained on and judged by, and each round's updates."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop._task, private_folder=workshop._private_folder, shown=TableProgress(io.StringIO()))
        self.trained: dict[str, set[str]] = {}
        self.judged: set[str] = set()
        self.past: list[tuple[dict[str, set[str]], set[str]]] = []
        self.kept: list[tuple[str, int, bool]] = []
        self.rounds: list[tuple[PublicState, dict[str, NDArray[np.float32]]]] = []

    def initial_state(self, spec: RunSpec) -> PublicState:
        if self.judged:
            self.past.append((self.trained, self.judged))
        self.trained, self.judged, self.rounds = {}, set(), []
        return super().initial_state(spec)

    def train_round(self, spec: RunSpec, state: PublicState, **options: Any) -> TrainedRound:
        site, round_index = options["site"], options["round_index"]
        self.kept.append((site, round_index, bool(options.get("private"))))
        self.trained.setdefault(site, set()).update(record.person for record in options["records"])
        trained = super().train_round(spec, state, **options)
        if round_index == len(self.rounds):
            self.rounds.append((state, {}))
        self.rounds[round_index][1][site] = trained.raw["adapter_update"]
        return trained

    def evaluate(
        self, spec: RunSpec, adapter: Any, records: Iterable[Any], *, training: Sequence[Any]
    ) -> EvaluationTotals:
        records = list(records)
        self.judged.update(record.person for record in records)
        return super().evaluate(spec, adapter, records, training=training)


class Bench:
    """A tiny model, a run, and three sites with records of their own."""

    def __init__(self, root: Path) -> None:
        make_tiny_model(root / "model")
        self.root = root
        self.model = root / "model"
        self.spec, _, _ = bound_spec(self.model, privacy={"clip_norm": CLIP_NORM})
        self.files = {name: write_records(root / f"{name}.jsonl", n) for name, n in N_RECORDS.items()}
        compute = choose_compute(DeviceChoice.CPU)
        task = ModelShelf().take(self.model, self.spec, sha256=self.spec.base_model.sha256, compute=compute)
        self.workshop = Workshop(task, private_folder=root, shown=TableProgress(io.StringIO()))

    def parts(self, *, validation_fraction: float = 0.0) -> tuple[SiteParts[Any], ...]:
        """Every site's parts; a person of one site is at the larger sites, too."""
        found: list[SiteParts[Any]] = []
        evaluation = self.spec.evaluation
        for name, file in self.files.items():
            dataset = format_called("jsonl").read(file, patient_field="patient_id")
            split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=8)
            parts = parts_of_site(
                name,
                n_records=len(dataset.records),
                training=split.training,
                held_out=split.held_out,
                validation_fraction=validation_fraction,
                max_validation=8,
            )
            found.append(parts)
        return tuple(found)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    n_threads = torch.get_num_threads()
    # As many as the job says that is compared: sums of floats depend on it.
    torch.set_num_threads(1)
    yield Bench(tmp_path_factory.mktemp("arms"))
    torch.set_num_threads(n_threads)


def filling_of(bench: Bench, root: Path, *, run_spec: Mapping[str, object] | None = None) -> Filling:
    """Everything that a table of this bench needs."""
    return Filling(
        path=root / "table.json",
        run_spec=run_spec or bench.spec.to_document(),
        sites=bench.parts(validation_fraction=0.2),
        common={},
        common_sha256="c",
        metric=ShownMetric(name="loss", unit="nats", better=Better.LOWER),
        grid=SearchGrid(learning_rates=(0.01,), steps=(3,), validation_fraction=0.2),
        seeds=(7,),
        arms=tuple(Arm),
        add_up=plain_sum,
        is_secure=False,
        is_redoing=False,
        machine={},
    )


def training_of(site: SiteParts[Any]) -> Sequence[Any]:
    return site.training


def test_round_of_a_site_is_bit_for_bit_what_its_trainer_writes(bench: Bench, tmp_path: Path) -> None:
    spec = bench.spec
    seed = training_seed(run_seed=spec.local.seed, site_id=SiteId("b"), round_index=0, round_attempt=0)
    job = tmp_path / "job-b"
    make_job(job, model_folder=bench.model, records=bench.files["b"], seed=seed, privacy={"clip_norm": CLIP_NORM})
    program = [sys.executable, "-m", "site_agent.training", "run", str(job)]
    subprocess.run(program, check=True, capture_output=True, timeout=240)
    written = tensors_from_bytes((job / PAYLOAD_FILE).read_bytes())

    site = next(site for site in bench.parts() if site.name == "b")
    initial = bench.workshop.initial_state(spec)
    trained = bench.workshop.train_round(spec, initial, site="b", records=site.training, round_index=0)
    assert trained.n_steps == spec.local.steps
    np.testing.assert_array_equal(trained.raw["adapter_update"], written["adapter_update"])
    evaluated = bench.workshop.evaluate(spec, initial.adapter, site.held_out, training=site.training)
    assert evaluated.loss_sum == written["eval_loss_sum"][0]
    assert (evaluated.n_units, evaluated.n_records) == (written["eval_tokens"][0], written["eval_records"][0])


def test_federated_arm_is_the_weighted_mean_of_clipped_updates_round_by_round(bench: Bench) -> None:
    listening = Listening(bench.workshop)
    result = train_federated(listening, bench.spec, bench.parts(), records_of=training_of)
    layout = bench.workshop.layout
    assert len(listening.rounds) == bench.spec.rounds
    starts = [*(layout.flatten(state.adapter) for state, _ in listening.rounds), layout.flatten(result.state.adapter)]
    n_clipped = 0
    for round_index, (_, updates) in enumerate(listening.rounds):
        # The oracle: float64, written from the definition (McMahan et al. 2017, Algorithm 1) with clipping.
        wide = {site: update.astype(np.float64) for site, update in updates.items()}
        norms = {site: float(np.sqrt(np.sum(update**2))) for site, update in wide.items()}
        clipped = {site: update * min(1.0, CLIP_NORM / norms[site]) for site, update in wide.items()}
        mean = sum(N_RECORDS[site] * clipped[site] for site in N_RECORDS) / sum(N_RECORDS.values())
        np.testing.assert_allclose(starts[round_index + 1], starts[round_index] + mean, rtol=1e-6, atol=1e-7)
        n_clipped += sum(norm > CLIP_NORM for norm in norms.values())
    assert n_clipped > 0
    assert sum(norm > CLIP_NORM for norm in result.update_norms) == n_clipped
    assert result.optimiser_steps == bench.spec.rounds * bench.spec.local.steps


def test_arm_alone_is_not_clipped_and_takes_as_many_steps(bench: Bench) -> None:
    site = bench.parts()[1]
    alone = train_alone(bench.workshop, bench.spec, site=site.name, records=site.training)
    assert alone.optimiser_steps == bench.spec.rounds * bench.spec.local.steps
    layout = bench.workshop.layout
    expected = layout.flatten(bench.workshop.initial_state(bench.spec).adapter)
    norms: list[float] = []
    for round_index in range(bench.spec.rounds):
        state = PublicState(version=round_index, adapter=layout.unflatten(expected))
        trained = bench.workshop.train_round(
            bench.spec, state, site=site.name, records=site.training, round_index=round_index
        )
        norms.append(float(np.linalg.norm(trained.raw["adapter_update"].astype(np.float64))))
        expected = expected + trained.raw["adapter_update"]
    assert max(norms) > CLIP_NORM, "a clipped update would be another"
    assert alone.update_norms == pytest.approx(norms)
    np.testing.assert_array_equal(layout.flatten(alone.state.adapter), expected)


def test_nobody_who_judges_is_trained_on_in_any_arm(bench: Bench, tmp_path: Path) -> None:
    listening = Listening(bench.workshop)
    filling = filling_of(bench, tmp_path)
    table = Table(study="tiny")
    fill_table(filling, table, listening, TableProgress(io.StringIO()))
    past = [*listening.past, (listening.trained, listening.judged)]
    assert len(past) == len(table.cells) == 5 + 6
    n_search = 5
    for trained, judged in past:
        assert judged
        for persons in trained.values():
            assert not persons & judged
    held_out = {frozenset(judged) for _, judged in past[n_search:]}
    validation = {frozenset(judged) for _, judged in past[:n_search]}
    assert len(held_out) == len(validation) == 1, "every arm is judged by the same records"
    assert not next(iter(held_out)) & next(iter(validation))
    searched = {person for trained, _ in past[:n_search] for persons in trained.values() for person in persons}
    assert not searched & next(iter(held_out))
    trained_sites = [set(trained) for trained, _ in past[n_search:]]
    assert trained_sites == [set(), {"a", "b", "c"}, {POOLED_SITE}, {"a"}, {"b"}, {"c"}]


def test_arm_without_a_site_is_the_federation_of_the_others_judged_by_all(bench: Bench, tmp_path: Path) -> None:
    filling = replace(filling_of(bench, tmp_path), grid=None, arms=(Arm.WITHOUT,), without=("b",))
    table = Table(study="tiny")
    listening = Listening(bench.workshop)
    fill_table(filling, table, listening, TableProgress(io.StringIO()))
    (made,) = table.cells.values()
    assert set(listening.trained) == {"a", "c"}
    assert set(made.sites) == {"a", "b", "c"}
    others = [site for site in filling.sites if site.name != "b"]
    expected = train_federated(bench.workshop, bench.spec, others, records_of=training_of)
    judged = bench.workshop.evaluate(bench.spec, expected.state.adapter, filling.sites[1].held_out, training=())
    assert made.sites["b"].loss_sum == judged.loss_sum


def test_pooled_arm_trains_on_every_site_s_records(bench: Bench) -> None:
    together = [record for site in bench.parts() for record in site.training]
    assert len(together) == sum(len(site.training) for site in bench.parts())
    result = train_alone(bench.workshop, bench.spec, site=POOLED_SITE, records=together)
    assert result.optimiser_steps == bench.spec.rounds * bench.spec.local.steps


def test_local_rule_finds_what_it_kept_at_its_site_in_the_round_before(bench: Bench, tmp_path: Path) -> None:
    document = bench.spec.to_document()
    filling = filling_of(
        bench, tmp_path, run_spec={**document, "local": {**document["local"], "rule": "scaffold", "optimizer": "sgd"}}
    )
    key = CellKey(phase=Phase.TABLE, arm=Arm.FEDERATED, site="", seed=7, learning_rate=0.01, steps=3)
    listening = Listening(bench.workshop)
    train_federated(listening, filling.spec_of(key), filling.sites, records_of=training_of)
    assert listening.kept == [(site, number, number > 0) for number in range(3) for site in "abc"]
    for arm in (Arm.POOLED, Arm.LOCAL):
        alone = filling.spec_of(replace(key, arm=arm))
        assert (alone.local.rule.value, alone.aggregation.algorithm.value) == ("plain", "fedavg-lora")
    assert filling.spec_of(key).local.rule.value == "scaffold"
