"""FedCLIP: an adapter behind a frozen image tower learns to bring an image to the prompt of its class.

Source: Lu, Hu, Wang, Xie, *FedCLIP* (arXiv 2302.13485). The text of a sample is its class's prompt, or its own where
its record has one; the loss is CLIP's own inside a batch. While all texts are class prompts, both kinds of targets give
the same number: the texts of a class are equal, and so is every share of its target. Knows no rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.image_text_adapter import ImageTextAdapter, PairTargets
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import FEATURES_FOLDER
from site_agent.training.clip.adapted import AdaptedTowers
from site_agent.training.contrastive.info_nce import diagonal_targets, same_class_targets, symmetric_info_nce
from site_agent.training.contrastive.zero_shot import Ensemble
from site_agent.training.device import Compute
from site_agent.training.errors import LabelUnknownError, OneClassOnlyError
from site_agent.training.images.errors import ImageMissingError
from site_agent.training.images.records import ImageTextRecord
from site_agent.training.task_half import EncodedRecord, EvaluatedBatch, Fit, LossSum, TaskHalf
from site_agent.training.tasks.image_text import (
    FORMATS,
    EmbeddingExample,
    PromptBank,
    RecordEmbedder,
    embed_prompts,
    evaluate_embeddings,
    labels_of,
    load_adapted_towers,
    towers_layout,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageAdapterTask:
    """Frozen towers, the adapter behind them, and the prompts of the classes. See ``LoadedTask``."""

    module: AdaptedTowers
    layout: AdapterLayout
    spec: ImageTextAdapter
    bank: PromptBank
    embedder: RecordEmbedder

    def prepare(self, training: Sequence[ImageTextRecord], *, private_folder: Path) -> None:
        """See ``PreparesRecords``.

        Raises:
            OneClassOnlyError: all records to train on are of one class.
            LabelUnknownError: a record's label is no class of the run, or it has not exactly one.
            ImageMissingError: a record has no image.
        """
        if len({self._class_of(record) for record in training}) < 2:
            raise OneClassOnlyError("all records to train on are of one class", records=len(training))
        self.embedder.keep_in(private_folder / FEATURES_FOLDER)

    def encode(self, record: ImageTextRecord) -> EncodedRecord:
        """Look at a record's image.

        Raises:
            DatasetError: it has no image, or one that cannot be decoded, or not one label of the run's.
        """
        number = self._class_of(record)
        assert record.image is not None, "as _class_of has seen"
        labels = tuple(int(other == number) for other in range(len(self.spec.classes)))
        embedding = self.embedder.image(record.image, line=record.line)
        text = None if record.text is None else self.embedder.text(record.text)
        return EncodedRecord(
            fit=Fit.WHOLE, example=EmbeddingExample(embedding=embedding, is_image=True, labels=labels, own_text=text)
        )

    def train_loss(self, examples: Sequence[EmbeddingExample]) -> LossSum:
        """The batch's mean loss times its images: a batch's pairs are each other's negatives, so it is no plain sum."""
        images = self.module.images(torch.stack([example.embedding for example in examples]))
        classes = torch.tensor([example.labels.index(1) for example in examples], device=images.device)
        texts = self.bank.class_embeddings(self.module)[classes]
        own = [number for number, example in enumerate(examples) if example.own_text is not None]
        if own:
            # An evaluation adapts what the texts say, too, where the adapter is one for both.
            said = torch.stack([text for example in examples if (text := example.own_text) is not None])
            texts = texts.index_copy(0, torch.tensor(own, device=texts.device), self.module.texts(said))
        if self.spec.targets is PairTargets.SAME_CLASS:
            targets = same_class_targets(classes, like=images)
        else:
            targets = diagonal_targets(len(examples), like=images)
        loss = symmetric_info_nce(images, texts, scale=self.module.scale(), targets=targets)
        return LossSum(loss=loss * len(examples), n_units=len(examples))

    def evaluate(self, examples: Sequence[EmbeddingExample]) -> EvaluatedBatch:
        """The loss and hits of telling each image's class by the prompts."""
        return evaluate_embeddings(self.module, self.bank, examples, ensemble=Ensemble(self.spec.ensemble.value))

    def _class_of(self, record: ImageTextRecord) -> int:
        if record.image is None:
            raise ImageMissingError("a record has no image", file="manifest", record=record.line, field="image")
        labels = labels_of(record, self.spec.classes)
        if labels.count(1) != 1:
            message = "a record has not exactly one label"
            raise LabelUnknownError(message, file="manifest", record=record.line, field="label")
        return labels.index(1)


def load_image_adapter_task(folder: Path, spec: RunSpec, compute: Compute) -> ImageAdapterTask:
    """Load the base, put the adapter behind it, and read the prompts.

    Raises:
        As ``load_adapted_towers``.
    """
    assert isinstance(spec.task, ImageTextAdapter), "the table says so"
    module, layout = load_adapted_towers(folder, spec, compute)
    return ImageAdapterTask(
        module=module,
        layout=layout,
        spec=spec.task,
        bank=embed_prompts(module, spec.task.classes),
        embedder=RecordEmbedder(module, base_sha256=spec.base_model.sha256, precision=compute.precision),
    )


IMAGE_TEXT_ADAPTER = TaskHalf(formats=FORMATS, load=load_image_adapter_task, layout_without_weights=towers_layout)
"""The row of the table."""
