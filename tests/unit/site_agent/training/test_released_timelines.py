"""A released model of codes says what transformers says of the folder that is assembled from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.training.assembling import assemble_model
from site_agent.training.errors import AdapterUnreadableError, BaseModelDigestMismatchError, VocabularyInvalidError
from site_agent.training.model_files import digest_model_folder
from site_agent.training.released_timelines import load
from site_agent.training.timelines.vocabulary import read_vocabulary
from tests.support.timeline_jobs import CODES, bound, make_base, timeline_document

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "base")


def release_of(base: Path, folder: Path, **task: object) -> Path:
    """What of a release's folder is needed to use it: weights that are not the base's."""
    vocabulary_sha256 = read_vocabulary(base / "vocab.txt").sha256
    document = timeline_document(
        digest_model_folder(base),
        vocabulary_sha256,
        task={"kind": "concept-timeline", "vocabulary_sha256": vocabulary_sha256, **task},
    )
    spec, layout, _ = bound(document, base)
    values = np.random.default_rng(5).normal(0, 0.5, layout.n_parameters).astype(np.float32)
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "run_spec.json").write_bytes(spec.canonical_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({"adapter_type": "FULL"}))
    (folder / "model.safetensors").write_bytes(bytes_from_tensors(layout.unflatten(values), {"format": "pt"}))
    return folder


def shares_by_transformers(release: Path, base: Path, codes: list[str], out: Path) -> dict[str, float]:
    assemble_model(release, base_model=base, out=out)
    tokenizer = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(out), local_files_only=True)
    ids = tokenizer("\n".join(["<SEP>", *codes]), return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1, -len(CODES) :].double()
    return dict(zip(CODES, torch.softmax(logits, dim=0).tolist(), strict=True))


@pytest.mark.parametrize("occurrences", ["all", "first"])
def test_next_codes_are_those_of_the_assembled_model(tmp_path: Path, base: Path, occurrences: str) -> None:
    release = release_of(base, tmp_path / "release", occurrences=occurrences)
    seen = [CODES[2], CODES[5]]
    of_all = shares_by_transformers(release, base, seen, tmp_path / "model")
    if occurrences == "first":
        # What is there already does not come again: the others share what is left.
        rest = 1 - sum(of_all.pop(code) for code in seen)
        of_all = {code: share / rest for code, share in of_all.items()}
    expected = sorted(of_all.items(), key=lambda one: -one[1])
    found = load(release, base=base).next_codes(seen, k=4)
    assert list(found) == [code for code, _ in expected[:4]]
    assert list(found.values()) == pytest.approx([share for _, share in expected[:4]], abs=1e-5)


def test_more_codes_than_are_left_are_those_that_are_left(tmp_path: Path, base: Path) -> None:
    model = load(release_of(base, tmp_path / "release"), base=base)
    assert set(model.next_codes(CODES[:6], k=50)) == set(CODES[6:])


def test_code_that_the_model_does_not_know_is_refused_by_its_place(tmp_path: Path, base: Path) -> None:
    model = load(release_of(base, tmp_path / "release"), base=base)
    with pytest.raises(VocabularyInvalidError) as caught:
        model.next_codes([CODES[0], "AE/UNKNOWN"], k=1)
    assert caught.value.facts == {"place": 1}


def test_another_base_and_a_folder_without_weights_are_refused(tmp_path: Path, base: Path) -> None:
    release = release_of(base, tmp_path / "release")
    with pytest.raises(BaseModelDigestMismatchError):
        load(release, base=make_base(tmp_path / "other", seed=8))
    (release / "model.safetensors").unlink()
    with pytest.raises(AdapterUnreadableError, match="no weights"):
        load(release, base=base)
    with pytest.raises(AdapterUnreadableError, match="no release"):
        load(tmp_path, base=base)
