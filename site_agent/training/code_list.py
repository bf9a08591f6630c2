"""A list of codes as the base of a vocabulary run, the counting of patients over it, and the vocabulary that follows.

A list is a folder with a model's three parts, so that it is registered, digested and approved as a base model is:
``config.json`` says what it is, ``vocab.txt`` is the list, and ``model.safetensors`` holds the number of codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.code_list_layout import PUBLISHED_TENSOR, code_list_layout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import write_file
from site_agent.training.errors import AdapterUnreadableError, VocabularyInvalidError
from site_agent.training.model_files import CONFIG_FILE, WEIGHTS_FILE, digest_model_folder
from site_agent.training.released_weights import read_released_weights
from site_agent.training.timelines.timeline import Timeline
from site_agent.training.timelines.vocabulary import VOCABULARY_FILE, Vocabulary, read_vocabulary

MODEL_TYPE = "wardround-code-list"


def make_code_list(list_file: Path, *, out: Path) -> dict[str, object]:
    """Write a list of codes as a base, and give its digest.

    Raises:
        VocabularyInvalidError: the list is none; the facts name the line.
    """
    codes = read_vocabulary(list_file)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / CONFIG_FILE, (json.dumps({"model_type": MODEL_TYPE}) + "\n").encode())
    n_codes = np.array([len(codes.codes)], dtype=np.int64)
    write_file(out / WEIGHTS_FILE, bytes_from_tensors({"n_codes": n_codes}))
    write_file(out / VOCABULARY_FILE, codes.to_bytes())
    return {"base_model_sha256": digest_model_folder(out), "n_codes": len(codes.codes)}


def read_code_list(folder: Path) -> Vocabulary:
    """The list of a folder.

    Raises:
        VocabularyInvalidError: the folder holds no list of codes.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise VocabularyInvalidError("the base model of the run is no list of codes", file=CONFIG_FILE)
    return read_vocabulary(folder / VOCABULARY_FILE)


def published_layout(spec: RunSpec, n_codes: int) -> AdapterLayout:
    """The layout of what a run publishes."""
    config: dict[str, object] = {"adapter_type": "PUBLISHED_CODES", "base_model_name_or_path": spec.base_model.name}
    return code_list_layout(n_codes, kind=AdapterKind.PUBLISHED_CODES.value, config=config)


def count_patients(timelines: Iterable[Timeline], codes: Sequence[str]) -> NDArray[np.int64]:
    """How many patients have each code; int64, shape (n,). A code that the list lacks is counted nowhere."""
    index = {code: place for place, code in enumerate(codes)}
    counts = np.zeros(len(codes), dtype=np.int64)
    for timeline in timelines:
        counts[[index[code] for code in set(timeline.codes) if code in index]] += 1
    return counts


def vocabulary_of_state(state: PublicState, codes: Sequence[str]) -> Vocabulary:
    """The published codes of a list, in its order.

    Raises:
        AdapterUnreadableError: the state is none of this list.
        VocabularyInvalidError: no code is published.
    """
    published = state.adapter.get(PUBLISHED_TENSOR)
    if published is None or published.shape != (len(codes),) or not np.isin(published, (0.0, 1.0)).all():
        raise AdapterUnreadableError("the release is not that of a vocabulary run over this list", codes=len(codes))
    return Vocabulary(codes=tuple(code for code, is_in in zip(codes, published, strict=True) if is_in))


def make_vocabulary(release: Path, *, code_list: Path, out: Path) -> dict[str, object]:
    """Write ``vocab.txt`` from a vocabulary run's release and its list, and give its digest.

    Raises:
        AdapterUnreadableError: the folder holds no such release.
        VocabularyInvalidError: the list is none, or no code is published.
    """
    state = PublicState(version=1, adapter=read_released_weights(release, AdapterKind.PUBLISHED_CODES))
    vocabulary = vocabulary_of_state(state, read_code_list(code_list).codes)
    write_file(out, vocabulary.to_bytes())
    return {"vocabulary_sha256": vocabulary.sha256, "n_codes": len(vocabulary.codes)}
