"""Whole jobs of both tasks on images, on a tiny CLIP: what leaves, what stays frozen, and what is said of bad input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from fl_protocol.folds import ALGORITHMS
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.layout_rules import check_layout
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import PAYLOAD_FILE, RESULT_FILE, JobFailure, JobKind, JobResult, read_progress
from site_agent.training.adapter_io import adapter_parameters, load_adapter
from site_agent.training.clip.hugging_face import MEAN, STD
from site_agent.training.clip.loading import load_towers
from site_agent.training.closing import close_job
from site_agent.training.data import split_dataset
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.formats import format_called
from site_agent.training.shelf import ModelShelf
from site_agent.training.tasks import image_text
from tests.support.image_jobs import ADAPTER_TASK, CLASSES, CONTRASTIVE_TASK, bound_image_spec, make_image_job
from tests.support.tiny_clip import DIMENSION, IMAGE_SIZE, make_tiny_clip, write_image_dataset, write_text_dataset
from tests.support.training_jobs import layout_of

pytestmark = pytest.mark.training

LABELS = ["red cell", "white cell", "platelet"] * 12
TEXTS = ["An erythrocyte is pale.", "No erythrocyte, but many neutrophils.", "Thrombocytes clump."] * 12
SECRET = "Xylophone-4711"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    make_tiny_clip(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_dataset(tmp_path / "images", LABELS)


@pytest.fixture
def shelf() -> ModelShelf:
    return ModelShelf()


def done(job_dir: Path, shelf: ModelShelf) -> tuple[JobResult, dict[str, np.ndarray]]:
    outcome = close_job(job_dir, shelf=shelf)
    assert isinstance(outcome, JobResult), outcome
    return outcome, tensors_from_bytes((job_dir / PAYLOAD_FILE).read_bytes())


def failed(job_dir: Path, shelf: ModelShelf) -> JobFailure:
    outcome = close_job(job_dir, shelf=shelf)
    assert isinstance(outcome, JobFailure), outcome
    assert not (job_dir / PAYLOAD_FILE).exists()
    assert SECRET not in (job_dir / RESULT_FILE).read_text()
    return outcome


def frozen_hashes(module: torch.nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()
        for name, value in module.state_dict().items()
        if not name.startswith("adapter.")
    }


@pytest.mark.parametrize(
    ("task", "n_parameters", "names"),
    [
        (ADAPTER_TASK, 2 * (DIMENSION**2 + DIMENSION), ["adapter.W1", "adapter.W2", "adapter.b1", "adapter.b2"]),
        (CONTRASTIVE_TASK, DIMENSION**2 + 1, ["adapter.log_scale", "adapter.projection"]),
    ],
)
def test_the_adapter_alone_is_trained_and_sent(
    tmp_path: Path,
    tiny_clip: Path,
    images: Path,
    shelf: ModelShelf,
    task: Mapping[str, object],
    n_parameters: int,
    names: list[str],
) -> None:
    spec = make_image_job(tmp_path / "job", model_folder=tiny_clip, manifest=images, task=task)
    loaded = shelf.take(tiny_clip, spec, sha256=spec.base_model.sha256, compute=_cpu())
    before = frozen_hashes(loaded.module)
    result, raw = done(tmp_path / "job", shelf)
    assert shelf.take(tiny_clip, spec, sha256=spec.base_model.sha256, compute=_cpu()) is loaded
    assert frozen_hashes(loaded.module) == before
    assert sorted(adapter_parameters(loaded.module)) == names
    assert all(value.grad is None for value in loaded.module.parameters() if not value.requires_grad)
    # Everything that a site hands to the secure sum, and how large it is: four bytes a parameter and a few figures.
    assert set(raw) == {
        "adapter_update", "train_loss_sum", "train_tokens", "eval_loss_sum", "eval_tokens", "eval_records",
        "eval_correct", "eval_classified",
    }  # fmt: skip
    assert raw["adapter_update"].nbytes == 4 * n_parameters
    assert sum(value.nbytes for name, value in raw.items() if name != "adapter_update") == 7 * 8
    assert result.records == len(LABELS)
    assert result.metrics["update_norm"] > 0
    layout = loaded.layout
    check_layout(layout, spec.adapter)
    weighed = ALGORITHMS["fedavg-lora"].weigh(raw, n_records=36, spec=spec, layout=layout, kind=RoundKind.TRAIN)
    assert set(weighed) == set(raw) | {"weight", "was_clipped"}


def test_towers_that_lack_weights_are_refused_and_never_filled_up_at_random(tmp_path: Path) -> None:
    make_tiny_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelInvalidError) as caught:
        load_towers(tmp_path)
    assert caught.value.facts == {"missing": 1, "first": "visual_projection.weight"}


def test_adapter_v0_is_the_zero_shot_of_transformers(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    make_image_job(tmp_path / "job", model_folder=tiny_clip, manifest=images, kind=JobKind.EVALUATE)
    _, raw = done(tmp_path / "job", shelf)
    model, tokenizer = CLIPModel.from_pretrained(str(tiny_clip)).eval(), AutoTokenizer.from_pretrained(str(tiny_clip))
    dataset = format_called("image-manifest").read(images, patient_field="patient_id")
    held_out = split_dataset(dataset, holdout_fraction=0.25, max_records=16).held_out
    prompts = [prompt for one in CLASSES for prompt in one["prompts"]]
    words = tokenizer(prompts, padding=True, return_tensors="pt")
    loss_sum, n_correct = 0.0, 0
    for record in held_out:
        with Image.open(record.image.path) as opened:  # 40 x 36: the middle 36 x 36, resized
            square = opened.convert("RGB").resize(
                (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=(2, 0, 38, 36)
            )
        pixels = (np.asarray(square) / 255 - MEAN) / STD
        with torch.no_grad():
            answer = model(**words, pixel_values=torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])
        by_prompt = answer.logits_per_image[0].double().numpy()
        by_class = np.array([by_prompt[:2].mean(), by_prompt[2:4].mean(), by_prompt[4]])
        truth = [one["name"] for one in CLASSES].index(next(iter(record.labels)))
        loss_sum -= by_class[truth] - np.log(np.exp(by_class).sum())
        n_correct += int(by_class.argmax() == truth)
    assert int(raw["eval_classified"][0]) == len(held_out) > 4
    # The box is a little off where the resized image has no whole number of columns.
    assert float(raw["eval_loss_sum"][0]) == pytest.approx(loss_sum, rel=2e-2)
    assert abs(int(raw["eval_correct"][0]) - n_correct) <= 1


@pytest.mark.parametrize("targets", ["diagonal", "same_class"])
def test_gradients_of_the_adapter_are_those_of_the_equations(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf, targets: str
) -> None:
    task = {**ADAPTER_TASK, "targets": targets}
    spec, layout, _ = bound_image_spec(tiny_clip, task)
    loaded = shelf.take(tiny_clip, spec, sha256=spec.base_model.sha256, compute=_cpu())
    rng = np.random.default_rng(8)
    values = {one.name: rng.normal(0, 0.5, one.shape).astype(np.float32) for one in layout.tensors}
    load_adapter(loaded.module, values, layout=layout)
    dataset = format_called("image-manifest").read(images, patient_field="patient_id")
    examples = [loaded.encode(record).example for record in dataset.records[:6]]
    loaded.module.zero_grad()
    answer = loaded.train_loss(examples)
    answer.loss.backward()

    # The same from the paper's equations, in float64, on the embeddings alone.
    own = {
        name.removeprefix("adapter."): torch.tensor(value).double().requires_grad_() for name, value in values.items()
    }
    z = torch.stack([example.embedding for example in examples]).double()
    attention = torch.softmax(torch.tanh(z @ own["W1"].T + own["b1"]) @ own["W2"].T + own["b2"], dim=1)
    x = attention * z
    x = x / x.norm(dim=1, keepdim=True)
    model, tokenizer = CLIPModel.from_pretrained(str(tiny_clip)).eval(), AutoTokenizer.from_pretrained(str(tiny_clip))
    by_class = []
    for one in CLASSES:
        with torch.no_grad():
            pooled = model.text_model(**tokenizer(one["prompts"], padding=True, return_tensors="pt")).pooler_output
            prompts = model.text_projection(pooled).double()
        by_class.append((prompts / prompts.norm(dim=1, keepdim=True)).mean(dim=0))
    truth = [0, 1, 2, 0, 1, 2]
    t = torch.stack([by_class[number] / by_class[number].norm() for number in truth])
    logits = model.logit_scale.detach().double().exp() * x @ t.T
    wanted = torch.eye(6, dtype=torch.float64)
    if targets == "same_class":
        wanted = torch.tensor([[0.5 if a == b else 0.0 for b in truth] for a in truth], dtype=torch.float64)
    of_images = -(wanted * torch.log_softmax(logits, dim=1)).sum() / 6
    of_texts = -(wanted * torch.log_softmax(logits, dim=0)).sum() / 6
    expected = (of_images + of_texts) / 2
    (6 * expected).backward()
    assert answer.n_units == 6
    assert answer.loss.item() == pytest.approx(6 * expected.item(), rel=1e-5)
    for name, parameter in adapter_parameters(loaded.module).items():
        reference = own[name.removeprefix("adapter.")].grad
        torch.testing.assert_close(parameter.grad.double(), reference, atol=1e-5, rtol=1e-4)


def with_captions(manifest: Path, caption: Callable[[int], str]) -> Path:
    """A copy of a manifest beside it, whose rows have texts of their own."""
    header, *rows = manifest.read_text().splitlines()
    captioned = manifest.with_name("captioned.csv")
    lines = [f"{header},text", *(f"{row},{caption(number)}" for number, row in enumerate(rows))]
    captioned.write_text("\n".join(lines) + "\n")
    return captioned


def test_projection_of_both_is_trained_on_texts_as_it_is_evaluated_on_them(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    """z' = z + U z of images and texts alike, U's gradient through both, of prompts and of texts of one's own."""
    captioned = with_captions(images, lambda number: "" if number else "a pale cell")
    spec, layout, _ = bound_image_spec(tiny_clip, ADAPTER_TASK, adapter={"kind": "joint-projection"})
    loaded = shelf.take(tiny_clip, spec, sha256=spec.base_model.sha256, compute=_cpu())
    values = {one.name: np.random.default_rng(9).normal(0, 0.3, one.shape).astype(np.float32) for one in layout.tensors}
    load_adapter(loaded.module, values, layout=layout)
    records = format_called("image-manifest").read(captioned, patient_field="patient_id").records[:3]
    examples = [loaded.encode(record).example for record in records]
    loaded.module.zero_grad()
    answer = loaded.train_loss(examples)
    answer.loss.backward()

    model, tokenizer = CLIPModel.from_pretrained(str(tiny_clip)).eval(), AutoTokenizer.from_pretrained(str(tiny_clip))
    u = torch.tensor(values["adapter.projection"]).double().requires_grad_()

    def adapted(z: torch.Tensor) -> torch.Tensor:
        moved = z.double() + z.double() @ u.T
        return moved / moved.norm(dim=-1, keepdim=True)

    def embedded(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            pooled = model.text_model(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            return model.text_projection(pooled)

    x = adapted(torch.stack([example.embedding for example in examples]))
    said = [
        adapted(embedded(["a pale cell"]))[0],
        *(adapted(embedded(one["prompts"])).mean(dim=0) for one in CLASSES[1:]),
    ]
    t = torch.stack([text / text.norm() for text in said])
    scale = (model.logit_scale.detach().double() + float(values["adapter.log_scale"][0])).clamp(0, 4.6052).exp()
    logits = scale * x @ t.T
    expected = -(torch.log_softmax(logits, dim=1).diag().sum() + torch.log_softmax(logits, dim=0).diag().sum()) / 2
    expected.backward()
    assert answer.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = adapter_parameters(loaded.module)["adapter.projection"].grad
    torch.testing.assert_close(found.double(), u.grad, atol=1e-5, rtol=1e-4)


def test_training_lowers_the_loss_of_its_records(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    # The towers are random, and a random text tower says nearly the same of every prompt: there is little to learn.
    local = {"steps": 60, "batch_size": 16, "learning_rate": 0.02}
    for number, task in enumerate((ADAPTER_TASK, CONTRASTIVE_TASK)):
        make_image_job(tmp_path / f"{number}", model_folder=tiny_clip, manifest=images, task=task, local=local)
        done(tmp_path / f"{number}", shelf)
        losses = [line.loss for line in read_progress(tmp_path / f"{number}") if line.loss is not None]
        assert np.mean(losses[-5:]) < 0.85 * losses[0]


def test_class_prompts_make_both_targets_one_and_texts_of_their_own_do_not(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    captioned = with_captions(images, lambda number: f"cell number {number}")
    losses: dict[tuple[str, str], float] = {}
    for manifest in (images, captioned):
        for targets in ("diagonal", "same_class"):
            job = tmp_path / f"{manifest.stem}-{targets}"
            make_image_job(
                job, model_folder=tiny_clip, manifest=manifest, task={**ADAPTER_TASK, "targets": targets},
                local={"steps": 1},
            )  # fmt: skip
            losses[manifest.stem, targets] = done(job, shelf)[0].metrics["train_loss"]
    assert losses["manifest", "diagonal"] == pytest.approx(losses["manifest", "same_class"], rel=1e-6)
    assert losses["captioned", "diagonal"] != pytest.approx(losses["captioned", "same_class"], rel=1e-6)


def test_sites_with_images_only_and_with_texts_only_train_from_one_specification(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    texts = write_text_dataset(tmp_path / "texts", TEXTS)
    others = write_image_dataset(tmp_path / "others", LABELS, seed=2, brightness=30)
    # Enough prompts for the five nearest, and every metric of an image.
    metrics = ["loss", "accuracy", "retrieval-p1", "retrieval-p3", "retrieval-p5"]
    specs, payloads, reports = [], [], []
    _, layout, initial = bound_image_spec(tiny_clip, CONTRASTIVE_TASK, evaluation={"metrics": metrics})
    for name, manifest in (("a", images), ("b", others), ("c", texts)):
        spec = make_image_job(
            tmp_path / name,
            model_folder=tiny_clip,
            manifest=manifest,
            task=CONTRASTIVE_TASK,
            evaluation={"metrics": metrics},
        )
        result, raw = done(tmp_path / name, shelf)
        specs.append(spec.canonical_bytes())
        reports.append(result)
        payloads.append(
            ALGORITHMS["fedavg-lora"].weigh(
                raw, n_records=result.records, spec=spec, layout=layout_of(tmp_path / name), kind=RoundKind.TRAIN
            )
        )
    assert len(set(specs)) == 1
    # Each site moves every element, so that the sum hides each: no element of any update is zero.
    assert all((payload["adapter_update"] != 0).all() for payload in payloads)
    # Texts are told by the prompts too, but images alone are counted.
    assert "eval_accuracy" in reports[0].metrics
    assert "eval_accuracy" not in reports[2].metrics
    assert int(payloads[2]["eval_classified"][0]) == int(payloads[2]["eval_queried"][0]) == 0
    sums = {name: sum(payload[name].astype(np.float64) for payload in payloads) for name in payloads[0]}
    sums = {
        name: value.astype(np.int64) if payloads[0][name].dtype == np.int64 else value for name, value in sums.items()
    }
    folded = ALGORITHMS["fedavg-lora"].fold(sums, initial, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3)
    assert set(folded.report.metrics) == set(metrics)
    assert 0 <= folded.report.metrics["retrieval-p5"] <= 1
    assert folded.state.version == 1


def test_texts_are_labelled_by_the_lexicon_and_those_that_affirm_nothing_are_left_out(
    tmp_path: Path, tiny_clip: Path, shelf: ModelShelf
) -> None:
    texts = write_text_dataset(tmp_path / "texts", [*TEXTS, *["Nothing of the kind."] * 24, *["No erythrocyte."] * 12])
    make_image_job(
        tmp_path / "job",
        model_folder=tiny_clip,
        manifest=texts,
        task=CONTRASTIVE_TASK,
        evaluation={"holdout_fraction": 0.5, "max_records": 64},
    )
    result, raw = done(tmp_path / "job", shelf)
    assert result.records == 72
    left_out = int(result.metrics["held_out_left_out"])
    assert 0 < left_out < 36
    assert result.held_out_records == int(raw["eval_records"][0])
    assert result.metrics["train_left_out"] > 0


def test_image_with_its_own_text_is_held_against_it_too(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf
) -> None:
    rows = images.read_text().splitlines()
    paired = images.with_name("paired.csv")
    paired.write_text("\n".join([rows[0] + ",text", *[f"{row},as it was reported" for row in rows[1:]]]) + "\n")
    losses = []
    for name, manifest in (("alone", images), ("paired", paired)):
        make_image_job(tmp_path / name, model_folder=tiny_clip, manifest=manifest, task=CONTRASTIVE_TASK)
        result, _ = done(tmp_path / name, shelf)
        losses.append((result.metrics["eval_loss"], result.metrics["train_loss"]))
    # The evaluation knows the prompts alone; the training has more candidates.
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_next_round_looks_at_no_image_again(
    tmp_path: Path, tiny_clip: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    decode = image_text.decode_image

    def counting(content: bytes, *, frame: int) -> np.ndarray:
        looked.append(frame)
        return decode(content, frame=frame)

    monkeypatch.setattr(image_text, "decode_image", counting)
    local = {"steps": 20}  # draws every record
    payloads = []
    for name in ("run/0.0", "run/1.0"):
        make_image_job(tmp_path / name, model_folder=tiny_clip, manifest=images, local=local)
        # A new shelf, as a trainer that was started again has.
        payloads.append(done(tmp_path / name, ModelShelf())[1]["adapter_update"].tobytes())
        if name.endswith("0.0"):
            assert 0 < len(looked) <= len(LABELS)
            looked.clear()
    assert looked == []
    assert payloads[0] == payloads[1]
    assert len(list((tmp_path / "run" / "features").iterdir())) > 0


def test_dataset_of_one_class_is_a_typed_failure(tmp_path: Path, tiny_clip: Path, shelf: ModelShelf) -> None:
    manifest = write_image_dataset(tmp_path / "one", ["platelet"] * 20)
    make_image_job(tmp_path / "job", model_folder=tiny_clip, manifest=manifest)
    assert failed(tmp_path / "job", shelf).code == "one-class-only"


def test_image_that_does_not_decode_is_named_by_its_row(tmp_path: Path, tiny_clip: Path, shelf: ModelShelf) -> None:
    for number, task in enumerate((ADAPTER_TASK, CONTRASTIVE_TASK)):
        manifest = write_image_dataset(tmp_path / f"d{number}", LABELS)
        for name in range(len(LABELS)):
            (manifest.parent / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + SECRET.encode() + bytes([name]))
        make_image_job(tmp_path / f"job{number}", model_folder=tiny_clip, manifest=manifest, task=task)
        failure = failed(tmp_path / f"job{number}", shelf)
        assert failure.code == "image-undecodable"
        assert failure.facts["field"] == "image"
        assert failure.facts["fault"] == "damaged"
        assert 2 <= int(str(failure.facts["record"])) <= len(LABELS) + 1


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([f"0.png,{SECRET}"], "label-unknown"),
        (["0.png,"], "label-unknown"),
        (["0.png,red cell;white cell"], "manifest-invalid"),
    ],
)
def test_label_that_the_run_does_not_have_is_a_typed_failure(
    tmp_path: Path, tiny_clip: Path, images: Path, shelf: ModelShelf, rows: list[str], code: str
) -> None:
    manifest = images.with_name("bad.csv")
    manifest.write_text("\n".join(["image,label", *rows, *[f"{k}.png,platelet" for k in range(1, 20)]]) + "\n")
    make_image_job(tmp_path / "job", model_folder=tiny_clip, manifest=manifest, evaluation={"holdout_fraction": 0.0})
    failure = failed(tmp_path / "job", shelf)
    assert (failure.code, failure.facts["record"]) == (code, 2)


def test_text_without_an_image_is_refused_by_the_task_that_needs_images(
    tmp_path: Path, tiny_clip: Path, shelf: ModelShelf
) -> None:
    manifest = write_text_dataset(tmp_path / "texts", TEXTS)
    make_image_job(tmp_path / "job", model_folder=tiny_clip, manifest=manifest)
    assert failed(tmp_path / "job", shelf).code == "image-missing"


def _cpu() -> object:
    from site_agent.jobs.job_dir import DeviceChoice
    from site_agent.training.device import choose_compute

    return choose_compute(DeviceChoice.CPU)
