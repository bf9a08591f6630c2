"""What both tasks on images have in common: records as embeddings, the prompts of the classes, and the evaluation.

An example holds an embedding that the frozen towers gave, so that training touches nothing but the adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import log_softmax, normalize

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.spec.tasks.prompt_bank import ImageClass
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.adapter_io import adapter_layout, attach_adapter
from site_agent.training.clip.adapted import AdaptedTowers
from site_agent.training.clip.loading import load_towers, towers_without_weights
from site_agent.training.clip.preparation import prepare_pixels
from site_agent.training.contrastive.zero_shot import Ensemble, class_logits, prompt_logits, retrieval_hits
from site_agent.training.device import Compute
from site_agent.training.errors import AdapterUnsuitableError, DatasetChangedError, LabelUnknownError
from site_agent.training.images.decode import decode_image
from site_agent.training.images.errors import ImageMissingError, ImageRefusedError, ImageUndecodableError
from site_agent.training.images.feature_cache import FeatureCache
from site_agent.training.images.records import ImageFile, ImageTextRecord
from site_agent.training.task_half import EvaluatedBatch

FORMATS = frozenset({"image-manifest"})
RETRIEVAL_RANKS = 5

_PROMPT_BATCH = 64
_MOST_KNOWN = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class EmbeddingExample:
    """A record as the towers see it. Safety: its repr shows nothing of it.

    Attributes:
        embedding: float32, shape (d,), before the adapter.
        is_image: of an image; otherwise of a text.
        labels: for each class 1, -1 or 0.
        own_text: of an image: the embedding of the text that its record has, if any.
    """

    embedding: torch.Tensor
    is_image: bool
    labels: tuple[int, ...]
    own_text: torch.Tensor | None = None

    def __repr__(self) -> str:
        """Nothing of the record."""
        return "EmbeddingExample(...)"

    @property
    def n_tokens(self) -> int:
        """Embeddings are of one length."""
        return 1

    @property
    def n_units(self) -> int:
        """It has one loss."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptBank:
    """The prompts of all classes as embeddings before the adapter.

    Attributes:
        embeddings: float32, shape (p, d).
        class_of_prompt: int64, shape (p,).
        places: for each class, where its prompts are.
    """

    embeddings: torch.Tensor
    class_of_prompt: torch.Tensor
    places: tuple[tuple[int, ...], ...]

    @property
    def labels(self) -> torch.Tensor:
        """A prompt affirms its class and speaks of no other: float32, shape (p, classes)."""
        labels = torch.zeros(len(self.class_of_prompt), len(self.places), device=self.embeddings.device)
        return labels.scatter_(1, self.class_of_prompt[:, None], 1.0)

    def class_embeddings(self, module: AdaptedTowers) -> torch.Tensor:
        """float32, shape (classes, d): the mean of each class's adapted prompts, each over its norm."""
        unit = normalize(module.texts(self.embeddings), dim=-1)
        return torch.stack([unit[list(places)].mean(dim=0) for places in self.places])


def embed_prompts(module: AdaptedTowers, classes: Sequence[ImageClass]) -> PromptBank:
    """Let the text tower read every prompt, once a loaded model."""
    prompts = [(prompt, number) for number, one in enumerate(classes) for prompt in one.prompts]
    texts = [prompt for prompt, _ in prompts]
    parts = [module.embed_texts(texts[start : start + _PROMPT_BATCH]) for start in range(0, len(texts), _PROMPT_BATCH)]
    # A copy outside of inference mode: an adapter behind it is trained.
    embeddings = torch.cat(parts).clone()
    class_of_prompt = torch.tensor([number for _, number in prompts], device=embeddings.device)
    places = tuple(
        tuple(place for place, (_, number) in enumerate(prompts) if number == wanted) for wanted in range(len(classes))
    )
    return PromptBank(embeddings=embeddings, class_of_prompt=class_of_prompt, places=places)


class RecordEmbedder:
    """Embeds a record's image and text with the frozen towers: once in memory, and once a run on the site's disk."""

    def __init__(self, module: AdaptedTowers, *, base_sha256: str, precision: str) -> None:
        """Keep the towers."""
        self._module = module
        self._base = f"{base_sha256} {precision}"
        self._cache: FeatureCache | None = None
        self._known: dict[str, torch.Tensor] = {}

    def keep_in(self, folder: Path) -> None:
        """Keep features in a folder from now on."""
        self._cache = FeatureCache(folder, base_sha256=self._base)

    def image(self, file: ImageFile, *, line: int) -> torch.Tensor:
        """The embedding of an image, float32, shape (d,).

        Raises:
            ImageMissingError, ImageRefusedError, ImageUndecodableError: with the record's line.
            DatasetChangedError: the file is not the one that was hashed.
        """
        towers = self._module.towers

        def look() -> torch.Tensor:
            pixels = prepare_pixels(_decode(file, line=line), towers.pixels)
            return towers.image_features(pixels[None])[0]

        what = f"image {file.sha256} {file.frame}"
        if what not in self._known:
            features = self._features(what, towers.image_projection.in_features, look)
            self._remember(what, self._module.image_embeddings(features[None])[0])
        return self._known[what]

    def text(self, text: str) -> torch.Tensor:
        """The embedding of a text, float32, shape (d,)."""
        towers = self._module.towers

        def read() -> torch.Tensor:
            return towers.text_features([text])[0]

        what = f"text {hashlib.sha256(text.encode()).hexdigest()}"
        if what not in self._known:
            features = self._features(what, towers.text_projection.in_features, read)
            self._remember(what, self._module.text_embeddings(features[None])[0])
        return self._known[what]

    def _features(self, what: str, length: int, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        return compute().clone() if self._cache is None else self._cache.get(what, length=length, compute=compute)

    def _remember(self, what: str, embedding: torch.Tensor) -> None:
        """Keep an embedding in memory, and let go of the first where there are many: 150 MB at 384 numbers each."""
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[what] = embedding


def labels_of(record: ImageTextRecord, classes: Sequence[ImageClass]) -> tuple[int, ...]:
    """A record's labels by the run's classes: 1, -1 or 0 each.

    Raises:
        LabelUnknownError: it has a label that is no class of the run.
    """
    names = [one.name for one in classes]
    if not record.labels.keys() <= set(names):
        message = "a record has a label that is none of the run's classes"
        raise LabelUnknownError(message, file="manifest", record=record.line, field="labels")
    return tuple(record.labels.get(name, 0) for name in names)


def evaluate_embeddings(
    module: AdaptedTowers, bank: PromptBank, examples: Sequence[EmbeddingExample], *, ensemble: Ensemble
) -> EvaluatedBatch:
    """Let each example be told by the prompts alone.

    The loss of a record is the cross entropy of its classes' logits with its affirmed classes, shared out among them:
    it depends on no other record. Accuracy and retrieval count images only; the candidates are the prompts.
    """
    embeddings = torch.stack([example.embedding for example in examples])
    is_image = torch.tensor([example.is_image for example in examples], device=embeddings.device)
    adapted = torch.where(is_image[:, None], module.images(embeddings), module.texts(embeddings))
    logits = prompt_logits(adapted, module.texts(bank.embeddings), scale=module.scale())
    of_classes = class_logits(logits, bank.places, ensemble=ensemble)
    affirmed = torch.tensor([example.labels for example in examples], device=embeddings.device) == 1
    targets = affirmed.float() / affirmed.sum(dim=1, keepdim=True)
    loss = -(targets * log_softmax(of_classes, dim=1)).sum(dim=1)
    best = affirmed.gather(1, of_classes.argmax(dim=1, keepdim=True))[:, 0]
    n_images = int(is_image.sum())
    counts = {"correct": int((best & is_image).sum()), "classified": n_images, "queried": n_images}
    is_relevant, before = affirmed[:, bank.class_of_prompt][is_image], 0
    for rank in range(1, RETRIEVAL_RANKS + 1):
        hits = retrieval_hits(logits[is_image], is_relevant, k=rank) if rank <= logits.shape[1] else before
        counts[f"relevant_at_{rank}"] = hits - before
        before = hits
    return EvaluatedBatch(loss_sum=float(loss.double().sum()), n_units=len(examples), counts=counts)


def load_adapted_towers(folder: Path, spec: RunSpec, compute: Compute) -> tuple[AdaptedTowers, AdapterLayout]:
    """Load the base and put the run's adapter behind it.

    Raises:
        BaseModelError: the folder holds no base with two towers.
        AdapterUnsuitableError: the run's adapter does not stand behind towers.
    """
    towers = load_towers(folder).to(device=compute.device, dtype=compute.dtype)
    return _adapted(towers, spec)


def towers_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The adapter's layout, from the folder's configuration alone.

    Raises:
        As ``load_adapted_towers``.
    """
    return _adapted(towers_without_weights(folder), spec)[1]


def _adapted(towers: torch.nn.Module, spec: RunSpec) -> tuple[AdaptedTowers, AdapterLayout]:
    module = attach_adapter(towers, spec)
    if not isinstance(module, AdaptedTowers):
        raise AdapterUnsuitableError("this kind of adapter does not stand behind an image tower and a text tower")
    return module, adapter_layout(module, spec)


def _decode(file: ImageFile, *, line: int) -> NDArray[np.uint8]:
    """The pixels of a record's image; what is wrong is told with the record's line."""
    try:
        content = file.path.read_bytes()
    except OSError as error:
        message = "an image cannot be read"
        raise ImageMissingError(message, file="image", record=line, reason=type(error).__name__) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DatasetChangedError("an image changed while the job ran", file="image", record=line)
    try:
        return decode_image(content, frame=file.frame)
    except (ImageRefusedError, ImageUndecodableError) as error:
        error.facts.update(file="image", record=line, field="image")
        raise
