from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.tensors.digest import model_digest, tensor_entry
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.training.errors import BaseModelDigestMismatchError, BaseModelInvalidError, BaseModelMissingError
from site_agent.training.model_files import digest_model_folder, stamps_of, verify_model_folder

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, dtype=np.float16)}
CONFIG = {"model_type": "x", "hidden_size": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes_from_tensors(TENSORS))
    return path


def write_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name, array in TENSORS.items():
        (folder / f"{name}.safetensors").write_bytes(bytes_from_tensors({name: array}))
    index = {"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_digest_is_that_of_the_tensors_in_memory(folder: Path) -> None:
    expected = model_digest(
        [tensor_entry(name, array) for name, array in TENSORS.items()],
        config=CONFIG,
        tokenizer={"tokenizer.json": hashlib.sha256(b"{}").hexdigest()},
    )
    assert digest_model_folder(folder) == expected


def test_digest_does_not_depend_on_how_the_weights_are_laid_out(folder: Path) -> None:
    before = digest_model_folder(folder)
    write_shards(folder)
    assert digest_model_folder(folder) == before


def test_digest_does_not_depend_on_who_wrote_the_configuration(folder: Path) -> None:
    before = digest_model_folder(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "transformers_version": "99", "_name_or_path": "here"}))
    (folder / "README.md").write_text("not a part of the model")
    assert digest_model_folder(folder) == before


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "tekken.json"],
)
def test_digest_changes_with_the_pieces_of_any_tokenizer(folder: Path, name: str) -> None:
    digests = {digest_model_folder(folder)}
    for content in (b"pieces", b"others"):
        (folder / name).write_bytes(content)
        digests.add(digest_model_folder(folder))
    assert len(digests) == 3


@pytest.mark.parametrize("change", ["weight", "config", "tokenizer", "template"])
def test_digest_changes_with_the_model(folder: Path, change: str) -> None:
    before = digest_model_folder(folder)
    match change:
        case "weight":
            changed = {**TENSORS, "b": np.nextafter(TENSORS["b"], np.float32(9))}
            (folder / "model.safetensors").write_bytes(bytes_from_tensors(changed))
        case "config":
            (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 4}))
        case "tokenizer":
            (folder / "tokenizer.json").write_text("{ }")
        case _:
            (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert digest_model_folder(folder) != before
    with pytest.raises(BaseModelDigestMismatchError) as caught:
        verify_model_folder(folder, before)
    assert caught.value.facts["expected"] == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_file_missing_is_a_typed_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BaseModelMissingError):
        digest_model_folder(folder)


def test_folder_missing_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(BaseModelMissingError):
        verify_model_folder(tmp_path / "none", "ab" * 32)


def test_pickled_weights_are_not_looked_at(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelMissingError):
        digest_model_folder(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"\xff" * 8, (10).to_bytes(8, "little") + b"not json!!", (2).to_bytes(8, "little") + b"[]"],
)
def test_weights_that_are_no_safetensors_are_a_typed_error(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelInvalidError):
        digest_model_folder(folder)


def test_weights_that_were_cut_off_are_a_typed_error(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(BaseModelInvalidError):
        digest_model_folder(folder)


def test_index_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(BaseModelInvalidError):
        digest_model_folder(folder)


def test_stamps_change_when_a_file_is_exchanged(folder: Path) -> None:
    before = stamps_of(folder)
    assert stamps_of(folder) == before
    (folder / "chat_template.jinja").write_text("x")
    assert stamps_of(folder) != before
