"""The tasks on text, each as a whole job: what it learns, what it adds to the sums, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from tokenizers.normalizers import Replace
from transformers import AutoModelForCausalLM

from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.faults import RunSpecFaultsError
from fl_protocol.spec.metrics import EvaluationTotals, values_of
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.spec.tasks import TaskKind
from site_agent.jobs.job_dir import (
    PAYLOAD_FILE,
    DeviceChoice,
    JobFailure,
    JobKind,
    JobResult,
)
from site_agent.training.adapter_io import attach_adapter, load_adapter
from site_agent.training.causal_model import load_base
from site_agent.training.closing import close_job
from site_agent.training.collate import Example
from site_agent.training.completion_loss import PaddedCompletionLoss
from site_agent.training.data import split_dataset
from site_agent.training.device import choose_compute
from site_agent.training.errors import TextMarksMissingError
from site_agent.training.formats import FORMATS
from site_agent.training.shelf import ModelShelf
from site_agent.training.task_half import Fit
from site_agent.training.tasks import TASKS
from site_agent.training.tasks.language_modelling import TextEncoder
from site_agent.training.text_records import PlainTextRecord, PreferenceRecord
from tests.support.tiny_model import make_tiny_tokenizer
from tests.support.training_jobs import (
    bound_spec,
    make_job,
    spec_document,
    write_preferences,
    write_records,
    write_texts,
)

pytestmark = pytest.mark.training

ALPACA = {"kind": "instruction-tuning", "template": "alpaca"}
PREFERENCES = {"kind": "preference-alignment", "beta": 0.2}
LANGUAGE = {"kind": "language-modelling"}
PAIRS = ["loss", "preference-accuracy", "preference-margin"]


def do(
    folder: Path, tiny_model: Path, records: Path, **options: object
) -> tuple[RunSpec, JobResult, dict[str, np.ndarray]]:
    spec = make_job(folder, model_folder=tiny_model, records=records, **options)  # type: ignore[arg-type]
    result = close_job(folder, shelf=ModelShelf())
    assert isinstance(result, JobResult), result
    return spec, result, load_tensors((folder / PAYLOAD_FILE).read_bytes())


def pairs_job(
    folder: Path, tiny_model: Path, records: Path, **options: object
) -> tuple[RunSpec, JobResult, dict[str, np.ndarray]]:
    return do(
        folder,
        tiny_model,
        records,
        data_format="preferences-jsonl",
        task=PREFERENCES,
        evaluation={"metrics": PAIRS},
        **options,
    )


def test_preference_job_of_adapter_v0_counts_no_margin_and_log_2_a_pair(tmp_path: Path, tiny_model: Path) -> None:
    records = write_preferences(tmp_path / "d", 40)
    spec, result, raw = pairs_job(tmp_path / "job", tiny_model, records)
    assert int(raw["eval_tokens"][0]) == int(raw["eval_records"][0]) == 8
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(8 * math.log(2), rel=1e-6)
    assert [int(raw[f"eval_{name}"][0]) for name in ("preferred", "margin_above", "margin_below")] == [0, 0, 0]
    # Three steps of two pairs.
    assert int(raw["train_tokens"][0]) == 6
    layout = bound_spec(tiny_model)[1]
    weighed = ALGORITHMS["fedavg-lora"].weigh(
        raw, n_records=result.records, spec=spec, layout=layout, kind=RoundKind.TRAIN
    )
    assert set(weighed) == set(raw) | {"weight", "was_clipped"}
    assert result.metrics["eval_preference-margin"] == 0.0


def test_preference_training_makes_held_out_margins_grow(tmp_path: Path, tiny_model: Path) -> None:
    records = write_preferences(tmp_path / "d", 60)
    options = {"local": {"steps": 40, "batch_size": 4, "learning_rate": 0.02}, "adapter": {"rank": 8, "alpha": 16}}
    _, _, raw = pairs_job(tmp_path / "job", tiny_model, records, **options)
    _, layout, initial = bound_spec(tiny_model, adapter=options["adapter"])
    adapter = layout.unflatten(layout.flatten(initial.adapter) + raw["adapter_update"])
    trained = PublicState(version=1, adapter=adapter)
    _, result, after = pairs_job(
        tmp_path / "after", tiny_model, records, kind=JobKind.EVALUATE, state=trained, **options
    )
    totals = EvaluationTotals(
        loss_sum=float(after["eval_loss_sum"][0]),
        n_units=int(after["eval_tokens"][0]),
        n_records=8,
        counts={name: int(after[f"eval_{name}"][0]) for name in ("preferred", "margin_above", "margin_below")},
    )
    found = values_of(
        parse_run_spec(spec_document("ab" * 32, task=PREFERENCES, evaluation={"metrics": PAIRS})).evaluation.metrics,
        totals,
    )
    assert found["loss"] < math.log(2) - 0.1
    assert found["preference-margin"] > 0.2
    assert found["preference-accuracy"] > 0.8
    assert result.metrics["eval_preference-margin"] == found["preference-margin"]


def test_margin_counts_are_those_of_the_equation(tmp_path: Path, tiny_model: Path) -> None:
    """Each held-out pair alone, by transformers' own loss on a merged adapter."""
    records = write_preferences(tmp_path / "d", 40)
    spec, layout, initial = bound_spec(tiny_model)
    values = {name: value + np.float32(0.05) for name, value in initial.adapter.items()}
    state = PublicState(version=1, adapter=values)
    _, _, raw = pairs_job(tmp_path / "job", tiny_model, records, kind=JobKind.EVALUATE, state=state)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval()
    other = attach_adapter(load_base(tiny_model, choose_compute(DeviceChoice.CPU)), spec)
    load_adapter(other, values, layout=layout)
    merged = other.merge_and_unload()
    tokenizer = make_tiny_tokenizer()

    def log_likelihood(model: torch.nn.Module, prompt: str, answer: str) -> float:
        prompt_ids = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        ids = torch.tensor([prompt_ids + tokenizer.encode(f"{answer}<|im_end|>")])
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        with torch.no_grad():
            return -float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - len(prompt_ids))

    split = split_dataset(
        FORMATS["preferences-jsonl"].read(records, patient_field="patient_id"), holdout_fraction=0.25, max_records=8
    )
    margins = []
    for record in split.held_out:
        assert isinstance(record, PreferenceRecord)
        ratios = [
            log_likelihood(merged, record.prompt, answer) - log_likelihood(base, record.prompt, answer)
            for answer in (record.chosen, record.rejected)
        ]
        margins.append(PREFERENCES["beta"] * (ratios[0] - ratios[1]))
    assert int(raw["eval_preferred"][0]) == sum(margin > 0 for margin in margins)
    above = sum(margin for margin in margins if margin > 0)
    below = -sum(margin for margin in margins if margin < 0)
    assert above + below > 0.01
    assert int(raw["eval_margin_above"][0]) == pytest.approx(1000 * above, abs=8)
    assert int(raw["eval_margin_below"][0]) == pytest.approx(1000 * below, abs=8)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins)
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(expected, rel=1e-4)


def test_preference_of_an_adapter_that_has_diverged_is_a_typed_failure(tmp_path: Path, tiny_model: Path) -> None:
    _, _, initial = bound_spec(tiny_model)
    state = PublicState(version=1, adapter={name: np.full_like(value, 1e30) for name, value in initial.adapter.items()})
    records = write_preferences(tmp_path / "d", 20)
    options = {"data_format": "preferences-jsonl", "task": PREFERENCES, "kind": JobKind.EVALUATE, "state": state}
    make_job(tmp_path / "job", model_folder=tiny_model, records=records, **options)  # type: ignore[arg-type]
    failure = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(failure, JobFailure)
    assert failure.code == "loss-not-finite"


def test_pair_whose_difference_is_cut_off_is_left_out(tiny_model: Path) -> None:
    document = spec_document("ab" * 32, task=PREFERENCES, local={"max_length": 60})
    task = TASKS[TaskKind.PREFERENCE_ALIGNMENT].load(
        tiny_model, parse_run_spec(document), choose_compute(DeviceChoice.CPU)
    )
    same = "x" * 50

    def fit(chosen: str, rejected: str, prompt: str = "q") -> Fit:
        record = PreferenceRecord(record_id="a", patient_id=None, prompt=prompt, chosen=chosen, rejected=rejected)
        return task.encode(record).fit

    assert fit("yes", "no") is Fit.WHOLE
    assert fit("yes", same) is Fit.CUT
    assert fit(same + "yes", same + "no") is Fit.NO_ROOM
    assert fit("yes", "no", prompt=same) is Fit.NO_ROOM


def test_language_job_sums_the_loss_of_every_token_and_of_the_end(tmp_path: Path, tiny_model: Path) -> None:
    records = write_texts(tmp_path / "d", 40)
    _, result, raw = do(
        tmp_path / "job",
        tiny_model,
        records,
        data_format="text-jsonl",
        task=LANGUAGE,
        evaluation={"metrics": ["loss", "perplexity"]},
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval(), make_tiny_tokenizer()
    dataset = FORMATS["text-jsonl"].read(records, patient_field="patient_id")
    loss_sum, n_tokens = 0.0, 0
    for record in split_dataset(dataset, holdout_fraction=0.25, max_records=8).held_out:
        assert isinstance(record, PlainTextRecord)
        ids = torch.tensor([tokenizer.encode(f"<|im_start|>{record.text}<|im_end|>")])
        with torch.no_grad():
            loss_sum += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        # One token a byte, and the end; the beginning is given.
        n_tokens += len(record.text.encode()) + 1
        assert ids.shape[1] - 1 == len(record.text.encode()) + 1
    assert int(raw["eval_tokens"][0]) == n_tokens
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(loss_sum, rel=1e-5)
    assert result.metrics["eval_perplexity"] == pytest.approx(math.exp(loss_sum / n_tokens), rel=1e-5)
    assert result.patients == 20


def test_text_that_is_too_long_loses_its_end() -> None:
    tokenizer = make_tiny_tokenizer()
    record = PlainTextRecord(record_id="a", patient_id=None, text="abcdefgh")
    whole = TextEncoder(tokenizer, max_length=10).encode(record)
    cut = TextEncoder(tokenizer, max_length=9).encode(record)
    assert (whole.fit, cut.fit) == (Fit.WHOLE, Fit.CUT)
    assert whole.example is not None
    assert cut.example is not None
    assert (whole.example.n_units, cut.example.n_units) == (9, 8)


@pytest.mark.parametrize(
    ("bos", "eos", "first", "n_units"), [(True, True, 1, 3), (False, True, 2, 3), (True, False, 1, 2)]
)
def test_text_begins_with_the_mark_that_the_tokenizer_has(bos: bool, eos: bool, first: int, n_units: int) -> None:
    tokenizer = make_tiny_tokenizer()
    if not bos:
        tokenizer.bos_token = None
    if not eos:
        tokenizer.eos_token = None
    example = (
        TextEncoder(tokenizer, max_length=10).encode(PlainTextRecord(record_id="a", patient_id=None, text="ab")).example
    )
    assert example is not None
    assert example.prompt_ids == (first,)  # type: ignore[attr-defined]
    assert example.n_units == n_units


def test_text_that_gives_no_token_is_left_out() -> None:
    """Many tokenizers drop characters without width, which are no blanks; without an end-of-text nothing is left."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    record = PlainTextRecord(record_id="a", patient_id=None, text="\u200b\u200b")
    assert record.text.strip()
    encoded = TextEncoder(tokenizer, max_length=10).encode(record)
    assert (encoded.fit, encoded.example) == (Fit.NO_ROOM, None)


def test_tokenizer_without_marks_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(TextMarksMissingError):
        TextEncoder(tokenizer, max_length=10)


def test_alpaca_job_sums_the_loss_of_answers_alone(tmp_path: Path, tiny_model: Path) -> None:
    records = write_records(tmp_path / "d", 40)
    local = {"max_length": 400}
    _, _, raw = do(tmp_path / "job", tiny_model, records, task=ALPACA, local=local, kind=JobKind.EVALUATE)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval(), make_tiny_tokenizer()
    dataset = FORMATS["jsonl"].read(records, patient_field="patient_id")
    loss_sum, n_tokens = 0.0, 0
    for record in split_dataset(dataset, holdout_fraction=0.25, max_records=8).held_out:
        prompt = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{record.prompt} \n\n### Response:"  # type: ignore[attr-defined]
        )
        prompt_ids = tokenizer.encode(prompt)
        ids = torch.tensor([prompt_ids + tokenizer.encode(f" {record.completion}<|im_end|>")])  # type: ignore[attr-defined]
        labels = ids.clone()
        labels[0, : len(prompt_ids)] = -100
        with torch.no_grad():
            loss_sum += float(model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - len(prompt_ids))
        n_tokens += ids.shape[1] - len(prompt_ids)
    assert int(raw["eval_tokens"][0]) == n_tokens
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(loss_sum, rel=1e-5)


def test_prompt_tokens_carry_no_loss_at_all(tiny_model: Path) -> None:
    """The gradient of the loss by the logits is exactly zero wherever no completion token is predicted."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval()
    kept: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _given: object, logits: torch.Tensor) -> None:
        logits.retain_grad()
        kept.append(logits)

    model.get_output_embeddings().register_forward_hook(keep)
    examples = (
        Example(prompt_ids=(1, 20, 30, 40), completion_ids=(60, 70)),
        Example(prompt_ids=(1, 20), completion_ids=(61,)),
    )
    PaddedCompletionLoss(model, pad_id=0)(examples).loss.backward()
    assert kept[0].grad is not None
    has_loss = kept[0].grad.abs().sum(dim=-1) > 0
    assert has_loss.tolist() == [[False, False, False, True, True, False], [False, True, False, False, False, False]]


def test_job_with_activations_computed_twice_gives_the_same_update(tmp_path: Path, tiny_model: Path) -> None:
    records = write_records(tmp_path / "d", 40)
    _, _, once = do(tmp_path / "once", tiny_model, records)
    _, _, twice = do(tmp_path / "twice", tiny_model, records, local={"gradient_checkpointing": True})
    np.testing.assert_allclose(twice["adapter_update"], once["adapter_update"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"task": {"kind": "preference-alignment", "beta": 0}}, "task.beta"),
        ({"task": {"kind": "preference-alignment", "template": "vicuna"}}, "task.template"),
        ({"task": {"kind": "language-modelling", "template": "chat"}}, "task.template"),
        ({"task": {"kind": "instruction-tuning", "packing": "yes"}}, "task.packing"),
        ({"evaluation": {"metrics": ["loss", "preference-margin"]}}, "evaluation.metrics[1]"),
        ({"task": PREFERENCES, "evaluation": {"metrics": ["perplexity"]}}, "evaluation.metrics[0]"),
        ({"base_model": {"quantization": "int2"}}, "base_model.quantization"),
        ({"local": {"gradient_checkpointing": 1}}, "local.gradient_checkpointing"),
    ],
)
def test_tasks_faults_are_told_by_their_path(sections: dict[str, Mapping[str, object]], path: str) -> None:
    with pytest.raises(RunSpecFaultsError) as caught:
        parse_run_spec(spec_document("ab" * 32, **sections))
    assert [fault.path for fault in caught.value.faults] == [path]


def test_what_is_not_said_is_not_in_the_document() -> None:
    document = parse_run_spec(spec_document("ab" * 32)).to_document()
    assert document["task"] == {"kind": "instruction-tuning", "template": "chat"}
    assert document["base_model"] == {"name": "tiny", "sha256": "ab" * 32}
    assert "gradient_checkpointing" not in document["local"]  # type: ignore[operator]


def test_what_is_said_comes_back_from_the_document() -> None:
    sections: dict[str, Mapping[str, object]] = {
        "task": {"kind": "instruction-tuning", "template": "alpaca", "packing": False},
        "base_model": {"quantization": "int8"},
        "local": {"gradient_checkpointing": True},
    }
    spec = parse_run_spec(spec_document("ab" * 32, **sections))
    assert parse_run_spec(spec.to_document()) == spec
    assert spec.to_document()["task"] == sections["task"]
