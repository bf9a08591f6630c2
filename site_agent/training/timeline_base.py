"""Makes the base of a timeline model: a small causal model of a vocabulary's size, and its tokenizer, from a seed.

The same vocabulary, shape and seed give the same bytes on every machine, so that the base has a digest that anybody can
recompute. The model is of the Llama family: rotary positions, gated layers, its head tied to its table of tokens. Its
weights are drawn as adapter v0 of the kind ``full`` is: a run of that kind whose ``local.seed`` is the same begins at
this very model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.tensors.adapter_layout import AdapterLayout, TensorSpec
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import write_file
from site_agent.training.adapter_io import adapter_parameters, initial_adapter
from site_agent.training.model_files import CONFIG_FILE, WEIGHTS_FILE, digest_model_folder
from site_agent.training.timelines.vocabulary import PAD, SEP, VOCABULARY_FILE, Vocabulary, read_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineShape:
    """The shape of a small model. Each is at least 1; ``width`` is a multiple of twice ``heads``."""

    layers: int = 2
    heads: int = 4
    width: int = 64
    max_length: int = 256


def make_timeline_base(vocabulary_file: Path, *, out: Path, shape: TimelineShape, seed: int) -> dict[str, object]:
    """Write config, weights, tokenizer and vocabulary into ``out`` and give their digests.

    Raises:
        VocabularyInvalidError: the vocabulary is none.
        ValueError: the shape is none, or the seed below 0 or above 2**63 - 1.
    """
    if not 0 <= seed < 1 << 63:
        message = "a seed is a whole number from 0 to 2**63 - 1"
        raise ValueError(message)
    if shape.width % (2 * shape.heads):
        message = "width must be a multiple of twice the number of heads"
        raise ValueError(message)
    vocabulary = read_vocabulary(vocabulary_file)
    config = _config_document(vocabulary, shape)
    layout = _layout(config)
    weights = initial_adapter(layout, seed).adapter
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / CONFIG_FILE, _json_bytes(config))
    # transformers asks of a weights file by which library it was written.
    write_file(out / WEIGHTS_FILE, bytes_from_tensors(weights, {"format": "pt"}))
    write_file(out / "tokenizer.json", _json_bytes(tokenizer_document(vocabulary)))
    write_file(out / "tokenizer_config.json", _json_bytes(_tokenizer_config(shape)))
    write_file(out / VOCABULARY_FILE, vocabulary.to_bytes())
    return {
        "base_model_sha256": digest_model_folder(out),
        "vocabulary_sha256": vocabulary.sha256,
        "n_codes": len(vocabulary.codes),
        "n_parameters": layout.n_parameters,
    }


def tokenizer_document(vocabulary: Vocabulary) -> dict[str, object]:
    """``tokenizer.json``: a word level model whose words are lines, so that a code may hold blanks."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Removed", "invert": False},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {token: index for index, token in enumerate(vocabulary.tokens)},
            # A code that the vocabulary lacks has no token: whoever encodes leaves it out first.
            "unk_token": PAD,
        },
    }


def _tokenizer_config(shape: TimelineShape) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_length,
        "pad_token": PAD,
        "sep_token": SEP,
        "clean_up_tokenization_spaces": False,
    }


def _config_document(vocabulary: Vocabulary, shape: TimelineShape) -> dict[str, object]:
    """``config.json``, each value that the model's form depends on written out."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": shape.width,
        "intermediate_size": 2 * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_length,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "pad_token_id": vocabulary.tokens.index(PAD),
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def _layout(config: dict[str, object]) -> AdapterLayout:
    """The tensors of the model, tied ones once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**config), trust_remote_code=False)
    tensors = tuple(
        TensorSpec(name=name, shape=tuple(parameter.shape)) for name, parameter in adapter_parameters(model).items()
    )
    return AdapterLayout(kind=AdapterKind.FULL.value, tensors=tensors, peft_config={})


def _json_bytes(document: dict[str, object]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
