"""MedCLIP: images and texts that never belonged together meet by their labels.

Source: Wang, Wu, Agarwal, Sun, *MedCLIP* (arXiv 2210.10163). What each record is held against is the run's prompts,
which are public, and, for an image that has one, its own text. So a site with images and labels only, and one with
texts only, train from the same specification. Knows no rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.image_text_contrastive import ImageTextContrastive, LabelSimilarity
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import FEATURES_FOLDER
from site_agent.training.clip.adapted import AdaptedTowers
from site_agent.training.contrastive.semantic_matching import label_similarity, semantic_matching
from site_agent.training.contrastive.zero_shot import Ensemble
from site_agent.training.device import Compute
from site_agent.training.entities.labeller import EntityLabeller
from site_agent.training.entities.labellers import LABELLERS
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
class ContrastiveTask:
    """Frozen towers, the adapter behind them, the prompts, and who labels texts. See ``LoadedTask``."""

    module: AdaptedTowers
    layout: AdapterLayout
    spec: ImageTextContrastive
    bank: PromptBank
    labeller: EntityLabeller
    embedder: RecordEmbedder

    def prepare(self, training: Sequence[ImageTextRecord], *, private_folder: Path) -> None:
        """See ``PreparesRecords``. One class only is no fault here: the prompts of the others are there."""
        del training
        self.embedder.keep_in(private_folder / FEATURES_FOLDER)

    def encode(self, record: ImageTextRecord) -> EncodedRecord:
        """Look at a record's image, or read its text.

        A record that affirms no class is left out: it could only say that it is like all of them.

        Raises:
            DatasetError: an image cannot be decoded, or a label is none of the run's.
        """
        labels = labels_of(record, self.spec.classes)
        if record.text is not None and not record.labels:
            labels = self.labeller.label(record.text)
        if 1 not in labels:
            return EncodedRecord(fit=Fit.NO_ROOM, example=None)
        text = None if record.text is None else self.embedder.text(record.text)
        if record.image is not None:
            image = self.embedder.image(record.image, line=record.line)
            example = EmbeddingExample(embedding=image, is_image=True, labels=labels, own_text=text)
        else:
            assert text is not None, "a record has an image or a text"
            example = EmbeddingExample(embedding=text, is_image=False, labels=labels)
        return EncodedRecord(fit=Fit.WHOLE, example=example)

    def train_loss(self, examples: Sequence[EmbeddingExample]) -> LossSum:
        """The batch's mean loss against all prompts, and the batch's own texts, times its records."""
        embeddings = torch.stack([example.embedding for example in examples])
        is_image = torch.tensor([example.is_image for example in examples], device=embeddings.device)
        adapted = torch.where(is_image[:, None], self.module.images(embeddings), self.module.texts(embeddings))
        labels = torch.tensor([example.labels for example in examples], dtype=torch.float32, device=embeddings.device)
        own = [(example.own_text, number) for number, example in enumerate(examples) if example.own_text is not None]
        candidates = torch.cat([self.bank.embeddings, *(text[None] for text, _ in own)])
        of_candidates = torch.cat([self.bank.labels, *(labels[number][None] for _, number in own)])
        similarity = label_similarity(labels, of_candidates, is_cosine=self.spec.similarity is LabelSimilarity.COSINE)
        loss = semantic_matching(
            adapted, self.module.texts(candidates), similarity=similarity, scale=self.module.scale()
        )
        return LossSum(loss=loss * len(examples), n_units=len(examples))

    def evaluate(self, examples: Sequence[EmbeddingExample]) -> EvaluatedBatch:
        """The loss of telling each record's class by the prompts, and the hits among images."""
        return evaluate_embeddings(self.module, self.bank, examples, ensemble=Ensemble(self.spec.ensemble.value))


def load_contrastive_task(folder: Path, spec: RunSpec, compute: Compute) -> ContrastiveTask:
    """Load the base, put the adapter behind it, and read the prompts.

    Raises:
        As ``load_adapted_towers``.
    """
    assert isinstance(spec.task, ImageTextContrastive), "the table says so"
    module, layout = load_adapted_towers(folder, spec, compute)
    return ContrastiveTask(
        module=module,
        layout=layout,
        spec=spec.task,
        bank=embed_prompts(module, spec.task.classes),
        labeller=LABELLERS[spec.task.labeller](spec.task.classes),
        embedder=RecordEmbedder(module, base_sha256=spec.base_model.sha256, precision=compute.precision),
    )


IMAGE_TEXT_CONTRASTIVE = TaskHalf(formats=FORMATS, load=load_contrastive_task, layout_without_weights=towers_layout)
"""The row of the table."""
