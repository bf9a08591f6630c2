"""The base model in memory: verified, loaded once and kept while jobs of the same run follow each other.

Knows no data and no rounds. The base is frozen; an adapter's values are set anew for every job. Nothing is fetched:
the folder is given, its weights are safetensors, and no code that came with a model is run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.training.adapter_io import adapter_layout, attach_lora
from site_agent.training.completion_loss import CompletionLoss, choose_completion_loss
from site_agent.training.device import Compute
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.model_files import FileStamp, stamps_of, verify_model_folder
from site_agent.training.tasks.instruction_tuning import Tokenizer

_log = logging.getLogger(__name__)

_LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptedModel:
    """A base model with an adapter on it. Invariant: only the adapter's parameters require a gradient."""

    module: torch.nn.Module
    tokenizer: Tokenizer
    layout: AdapterLayout
    completion_loss: CompletionLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKey:
    """What two jobs must agree on to share a loaded model."""

    folder: str
    stamps: tuple[FileStamp, ...]
    sha256: str
    adapter: str
    compute: Compute


class ModelShelf:
    """Holds the model of the last job. Invariant: at most one is in memory."""

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._key: ModelKey | None = None
        self._model: AdaptedModel | None = None

    def take(self, folder: Path, spec: RunSpec, *, sha256: str, compute: Compute) -> AdaptedModel:
        """The run's base model with the run's adapter on it; loaded and verified unless it is here already.

        Raises:
            BaseModelError: the folder is missing, unusable, or holds another model than ``sha256``.
            TargetModulesUnknownError: the base has no module of a name that the adapter targets.
        """
        adapter = f"{spec.base_model.name} {sorted(spec.adapter.to_document().items())}"
        key = ModelKey(folder=str(folder), stamps=stamps_of(folder), sha256=sha256, adapter=adapter, compute=compute)
        if self._model is None or key != self._key:
            self.clear()
            verify_model_folder(folder, sha256)
            self._model = adapt_model(load_base(folder, compute), load_tokenizer(folder), spec)
            self._key = key
        return self._model

    def clear(self) -> None:
        """Let go of the model."""
        self._key = self._model = None


def adapt_model(base: torch.nn.Module, tokenizer: Tokenizer, spec: RunSpec) -> AdaptedModel:
    """Put a run's adapter on a loaded base, and choose how its loss is computed.

    Raises:
        TargetModulesUnknownError: as ``attach_lora``.
    """
    module = attach_lora(base, spec.adapter)
    pad_id = getattr(tokenizer, "pad_token_id", None) or 0
    return AdaptedModel(
        module=module,
        tokenizer=tokenizer,
        layout=adapter_layout(module, spec),
        completion_loss=choose_completion_loss(module, pad_id=pad_id, has_dropout=spec.adapter.dropout > 0),
    )


def load_base(folder: Path, compute: Compute) -> torch.nn.Module:
    """Load a base model by path onto its device, frozen.

    Raises:
        BaseModelInvalidError: transformers cannot load it.
    """
    model = _load_or_explain(
        lambda: AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=compute.dtype, use_safetensors=True, attn_implementation="sdpa", **_LOCAL_ONLY
        )
    )
    _log.info("base model loaded: device=%s precision=%s (%s)", compute.device, compute.precision, compute.reason)
    # On its device before an adapter is put on it: the adapter's float32 must not be cast along with the base.
    return model.to(compute.device).requires_grad_(requires_grad=False).eval()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer that stands beside a base model.

    Raises:
        BaseModelInvalidError: transformers cannot load it.
    """
    tokenizer = _load_or_explain(lambda: AutoTokenizer.from_pretrained(str(folder), **_LOCAL_ONLY))
    return cast("Tokenizer", tokenizer)


def load_config(folder: Path) -> PretrainedConfig:
    """Load a base model's configuration.

    Raises:
        BaseModelInvalidError: transformers does not know it.
    """
    return _load_or_explain(lambda: AutoConfig.from_pretrained(str(folder), **_LOCAL_ONLY))


def layout_without_weights(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The layout that a run's adapter has on a base model, without reading the base's weights.

    Raises:
        BaseModelInvalidError: transformers does not know the configuration.
        TargetModulesUnknownError: as ``attach_lora``.
    """
    config = load_config(folder)
    with torch.device("meta"):
        base = _load_or_explain(lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        return adapter_layout(attach_lora(base, spec.adapter), spec)


def _load_or_explain(load: Callable[[], Loaded]) -> Loaded:
    """Run one of transformers' loaders; its errors say nothing of data, but their type is enough."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        message = "the libraries of this trainer cannot load the base model"
        raise BaseModelInvalidError(message, reason=type(error).__name__) from error
