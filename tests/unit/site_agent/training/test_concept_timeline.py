"""The task concept-timeline: its base, its loss, its counts, and whole jobs of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.metrics import METRICS, ranking_count
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import PAYLOAD_FILE, DeviceChoice, JobFailure, JobKind, JobResult
from site_agent.training.adapter_io import adapter_parameters, initial_adapter, read_adapter
from site_agent.training.closing import close_job
from site_agent.training.device import choose_compute
from site_agent.training.errors import BaseModelInvalidError, VocabularyInvalidError
from site_agent.training.model_files import digest_model_folder
from site_agent.training.shelf import ModelShelf
from site_agent.training.tasks.concept_timeline import TimelineTask, load_timeline_task
from site_agent.training.timeline_base import TimelineShape, make_timeline_base
from site_agent.training.timelines.encoding import TimelineExample
from site_agent.training.timelines.vocabulary import SPECIAL_TOKENS, read_vocabulary
from tests.support.timeline_jobs import (
    CODES,
    SECRET,
    bound,
    make_base,
    make_timeline_job,
    timeline_document,
    write_rows,
    write_vocabulary,
)
from tests.support.training_jobs import layout_of

pytestmark = pytest.mark.training

FIRST = len(SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "timeline")


def spec_on(base: Path, **sections: dict[str, object]) -> RunSpec:
    vocabulary = read_vocabulary(base / "vocab.txt")
    return parse_run_spec(timeline_document(digest_model_folder(base), vocabulary.sha256, **sections))


def task_on(base: Path, **sections: dict[str, object]) -> TimelineTask:
    return load_timeline_task(base, spec_on(base, **sections), choose_compute(DeviceChoice.CPU))


# --- the base ---


def test_base_is_the_same_to_the_byte_and_follows_its_seed(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    shape = TimelineShape(layers=1, heads=2, width=16, max_length=32)
    folders = [tmp_path / name for name in ("one", "two", "other")]
    told = [
        make_timeline_base(vocabulary, out=folder, shape=shape, seed=seed)
        for folder, seed in zip(folders, (7, 7, 8), strict=True)
    ]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert told[0] == told[1]
    assert told[0]["base_model_sha256"] != told[2]["base_model_sha256"]
    assert told[0]["vocabulary_sha256"] == hashlib.sha256(vocabulary.read_bytes()).hexdigest()


def test_base_in_another_process_has_the_same_digest(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "here")
    out = tmp_path / "there"
    program = [sys.executable, "-m", "site_agent.training", "make-timeline-base", "--layers", "1", "--heads", "2"]
    program += ["--width", "16", "--max-length", "32", "--seed", "7", "--vocabulary", str(folder.with_suffix(".txt"))]
    subprocess.run([*program, "--out", str(out)], check=True, capture_output=True, timeout=240)
    assert digest_model_folder(out) == digest_model_folder(folder)


def test_base_loads_by_transformers_alone_with_the_vocabulary_s_ids(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model, report = AutoModelForCausalLM.from_pretrained(str(base), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert tokenizer(f"<SEX:male>\n<SEP>\n{CODES[0]}\n{CODES[7]}").input_ids == [3, 1, FIRST, FIRST + 7]
    assert model.config.vocab_size == FIRST + len(CODES)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_base_shape_and_seed_that_are_none_are_refused(tmp_path: Path) -> None:
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match="width"):
        make_timeline_base(vocabulary, out=tmp_path / "x", shape=TimelineShape(width=12, heads=4), seed=1)
    with pytest.raises(ValueError, match="seed"):
        make_timeline_base(vocabulary, out=tmp_path / "x", shape=TimelineShape(), seed=-1)
    assert not (tmp_path / "x").exists()


def test_initial_adapter_of_the_same_seed_is_the_base(base: Path) -> None:
    spec, layout, state = bound(spec_on(base).to_document(), base)
    weights = tensors_from_bytes((base / "model.safetensors").read_bytes())
    assert set(state.adapter) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(state.adapter[name], array)
    table = state.adapter["model.embed_tokens.weight"]
    # 400 uniform draws of standard deviation 0.02: that of the sample is within a tenth of it, by far.
    assert float(table.std()) == pytest.approx(0.02, rel=0.1)
    check_layout(layout, spec.adapter)
    assert initial_adapter(layout, 8).digest() != state.digest()


# --- loading ---


def test_every_parameter_is_trained_and_named_as_in_the_base(base: Path) -> None:
    task = task_on(base)
    parameters = adapter_parameters(task.module)
    assert sum(parameter.numel() for parameter in parameters.values()) == sum(
        array.size for array in tensors_from_bytes((base / "model.safetensors").read_bytes()).values()
    )
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


def test_lora_on_the_base_trains_low_rank_pairs_only(base: Path) -> None:
    adapter = {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}
    spec, layout, _ = bound(spec_on(base, adapter=adapter).to_document(), base)
    check_layout(layout, spec.adapter)
    task = load_timeline_task(base, spec, choose_compute(DeviceChoice.CPU))
    assert task.layout == layout
    assert all(".lora_" in name for name in read_adapter(task.module))


def test_base_with_another_vocabulary_width_or_fewer_positions_is_refused(base: Path, tmp_path: Path) -> None:
    spec = spec_on(base)
    other = make_base(tmp_path / "other")
    write_vocabulary(other / "vocab.txt", CODES[:-1])
    with pytest.raises(VocabularyInvalidError) as caught:
        load_timeline_task(other, spec, choose_compute(DeviceChoice.CPU))
    assert caught.value.facts["expected"] == read_vocabulary(base / "vocab.txt").sha256
    narrow = spec_on(
        base, task={"kind": "concept-timeline", "vocabulary_sha256": read_vocabulary(other / "vocab.txt").sha256}
    )
    with pytest.raises(BaseModelInvalidError, match="one row"):
        load_timeline_task(other, narrow, choose_compute(DeviceChoice.CPU))
    with pytest.raises(BaseModelInvalidError, match="positions"):
        load_timeline_task(
            base, replace(spec, local=replace(spec.local, max_length=64)), choose_compute(DeviceChoice.CPU)
        )


# --- loss and counts ---

EXAMPLES = [
    TimelineExample(token_ids=(2, 1, FIRST, FIRST + 3, 6, FIRST + 1), targets=(2, 3, 5), days=(10, 11, 400)),
    TimelineExample(token_ids=(1, FIRST + 4, FIRST + 5), targets=(1, 2), days=(5, 5)),
]


EVERY_KIND: list[dict[str, object]] = [
    {"kind": "full"},
    {"kind": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]},
    {"kind": "prompt", "virtual_tokens": 4},
    {"kind": "prefix", "virtual_tokens": 4},
    {"kind": "ia3", "targets": ["k_proj", "v_proj", "down_proj"], "feedforward": ["down_proj"]},
]


@pytest.mark.parametrize("adapter", EVERY_KIND, ids=lambda adapter: adapter["kind"])
def test_loss_is_the_sum_over_codes_of_what_each_sequence_has_alone(base: Path, adapter: dict[str, object]) -> None:
    # Virtual tokens take positions of the base, too: sequences leave them room.
    task = task_on(base, adapter=adapter, local={"max_length": 28})
    expected = 0.0
    with torch.no_grad():
        for example in EXAMPLES:
            answer = task.module(input_ids=torch.tensor([example.token_ids]), use_cache=False).logits[0].double()
            # A soft prompt's rows come first: the last ones are the sequence's own.
            logits = answer[len(answer) - example.n_tokens :]
            for place in example.targets:
                row = logits[place - 1]
                expected -= float(row[example.token_ids[place]] - torch.logsumexp(row, 0))
    loss = task.train_loss(EXAMPLES)
    assert loss.n_units == 5
    assert float(loss.loss.detach()) == pytest.approx(expected, rel=1e-5)
    with torch.inference_mode():
        evaluated = task.evaluate(EXAMPLES)
    assert evaluated.n_units == 5
    assert evaluated.loss_sum == pytest.approx(expected, rel=1e-5)


def test_loss_moves_every_row_of_the_table_of_tokens(base: Path) -> None:
    # The claim of dense_full: tied to the head, no row keeps still, whichever codes a site has.
    task = task_on(base)
    task.train_loss(EXAMPLES).loss.backward()
    table = dict(task.module.named_parameters())["model.embed_tokens.weight"]
    assert table.grad is not None
    assert bool((table.grad.abs().sum(dim=1) > 0).all())


def test_evaluation_counts_what_the_model_s_own_ranking_gives(base: Path) -> None:
    sha256 = read_vocabulary(base / "vocab.txt").sha256
    section = {"kind": "concept-timeline", "vocabulary_sha256": sha256, "time_range_days": 30}
    task = task_on(base, task=section)
    with torch.inference_mode():
        counts = task.evaluate(EXAMPLES).counts
        hits = within = 0
        for example in EXAMPLES:
            logits = task.module(input_ids=torch.tensor([example.token_ids])).logits[0]
            for k in range(1, len(example.targets)):
                seen = {example.token_ids[place] for place in example.targets[:k]}
                row = logits[example.targets[k] - 1]
                order = sorted((n for n in range(FIRST, len(row)) if n not in seen), key=lambda n: -float(row[n]))
                is_hit = example.token_ids[example.targets[k]] in order[:3]
                hits += is_hit
                within += example.days[k] - example.days[k - 1] <= 30
    assert counts[ranking_count("next", "new", "positions")] == 3
    assert counts[ranking_count("next", "new", "hits_3")] == hits
    assert counts[ranking_count("time-range", "new", "events")] == within == 2
    of_rankings = [rule.counts for metric, rule in METRICS.items() if metric.value.endswith(("-new", "-old", "-all"))]
    assert set().union(*of_rankings) == set(counts)
    assert max(counts.values()) <= sum(example.n_units for example in EXAMPLES)


# --- jobs ---

METRICS_OF_RUN = ["loss", "precision-at-5-next-new", "recall-at-3-any-new"]
EVALUATION = {"every": 1, "metrics": METRICS_OF_RUN, "holdout_fraction": 0.25, "max_records": 16}


def perform(folder: Path) -> JobResult | JobFailure:
    return close_job(folder, shelf=ModelShelf(), checkpoint_every_s=60.0)


def test_job_trains_all_parameters_and_its_payload_is_the_algorithm_s(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    document = spec_on(base, evaluation=EVALUATION, local={"learning_rate": 0.02, "steps": 8}).to_document()
    spec = make_timeline_job(tmp_path / "job", document, base=base, rows=rows)
    result = perform(tmp_path / "job")
    assert isinstance(result, JobResult), result
    assert (result.records, result.patients) == (24, 24)
    raw = tensors_from_bytes((tmp_path / "job" / PAYLOAD_FILE).read_bytes())
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    algorithm.weigh(raw, n_records=24, spec=spec, layout=layout_of(tmp_path / "job"), kind=RoundKind.TRAIN)
    assert float(np.abs(raw["adapter_update"]).max()) > 0
    held_out = result.held_out_records
    assert 0 < held_out < 24
    assert int(raw["eval_records"][0]) == held_out
    assert 0 < int(raw["eval_next_new_positions"][0]) <= int(raw["eval_tokens"][0])
    expected = int(raw["eval_next_new_hits_5"][0]) / int(raw["eval_next_new_positions"][0])
    assert result.metrics["eval_precision-at-5-next-new"] == pytest.approx(expected)


def test_job_is_the_same_twice(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    document = spec_on(base, evaluation=EVALUATION).to_document()
    payloads = []
    for name in ("one", "two"):
        make_timeline_job(tmp_path / name, document, base=base, rows=rows)
        assert isinstance(perform(tmp_path / name), JobResult)
        payloads.append((tmp_path / name / PAYLOAD_FILE).read_bytes())
    assert payloads[0] == payloads[1]


def test_job_over_a_row_without_a_date_fails_with_its_type_and_tells_no_record(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    rows.write_text(rows.read_text() + f"{SECRET},,{SECRET},AE,F\n")
    make_timeline_job(tmp_path / "job", spec_on(base).to_document(), base=base, rows=rows)
    failure = perform(tmp_path / "job")
    assert isinstance(failure, JobFailure)
    told = str(failure.to_document())
    assert failure.code == "code-without-date"
    assert "rows.csv" in told
    assert SECRET not in told


def test_job_over_records_of_another_task_is_refused(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24)
    make_timeline_job(tmp_path / "job", spec_on(base).to_document(), base=base, rows=rows, data_format="jsonl")
    failure = perform(tmp_path / "job")
    assert isinstance(failure, JobFailure)
    assert failure.code == "dataset-format-unknown"


def test_job_whose_patients_have_too_few_codes_says_so(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv", 24, codes=tuple(f"unknown {n}" for n in range(6)))
    make_timeline_job(tmp_path / "job", spec_on(base).to_document(), base=base, rows=rows, kind=JobKind.TRAIN)
    failure = perform(tmp_path / "job")
    assert isinstance(failure, JobFailure)
    assert failure.code == "no-usable-records"
    # Of a task without prompts, nobody is told to look for a prompt's length.
    assert "completion" not in failure.message
    assert "min_tokens" in failure.advice
