"""Which base with two towers a folder holds, by the ``model_type`` of its configuration: one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from site_agent.training.clip import hugging_face, mini_clip
from site_agent.training.clip.towers import TwoTowers
from site_agent.training.errors import BaseModelInvalidError, BaseModelMissingError
from site_agent.training.model_files import CONFIG_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Loader:
    """How one kind of base is made, with its weights and without."""

    load: Callable[[Mapping[str, object], Path], TwoTowers]
    without_weights: Callable[[Mapping[str, object], Path], TwoTowers]


LOADERS: Mapping[str, Loader] = {
    hugging_face.MODEL_TYPE: Loader(
        load=lambda _, folder: hugging_face.load_clip(folder),
        without_weights=lambda _, folder: hugging_face.clip_without_weights(folder),
    ),
    mini_clip.MODEL_TYPE: Loader(load=mini_clip.load_mini_clip, without_weights=mini_clip.mini_clip_without_weights),
}


def load_towers(folder: Path) -> TwoTowers:
    """Load the base of a folder that was verified before.

    Raises:
        BaseModelMissingError: there is no configuration.
        BaseModelInvalidError: it is no base with two towers that this trainer knows.
    """
    config = _config(folder)
    return _loader(config).load(config, folder)


def towers_without_weights(folder: Path) -> TwoTowers:
    """The same without reading the weights: its shapes are right, its numbers are nothing.

    Raises:
        As ``load_towers``.
    """
    config = _config(folder)
    with torch.device("meta"):
        return _loader(config).without_weights(config, folder)


def _loader(config: Mapping[str, object]) -> Loader:
    loader = LOADERS.get(str(config.get("model_type")))
    if loader is None:
        known = ", ".join(sorted(LOADERS))
        raise BaseModelInvalidError("the base model has no image and text towers that this trainer knows", known=known)
    return loader


def _config(folder: Path) -> Mapping[str, object]:
    try:
        document: object = json.loads((folder / CONFIG_FILE).read_bytes())
    except OSError as error:
        raise BaseModelMissingError("a file of the base model is missing", file=CONFIG_FILE) from error
    except ValueError as error:
        raise BaseModelInvalidError("a file of the base model is no JSON", file=CONFIG_FILE) from error
    if not isinstance(document, dict):
        raise BaseModelInvalidError("a file of the base model holds no JSON object", file=CONFIG_FILE)
    return document
