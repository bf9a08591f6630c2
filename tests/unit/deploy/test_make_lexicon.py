"""Terms from two public vocabularies, on excerpts that were written by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from site_agent.training.entities.lexicon import LexiconLabeller

pytestmark = pytest.mark.training

ONTOLOGY = r"""format-version: 1.2

[Term]
id: HP:0000001
name: Blood
synonym: "The blood" EXACT []
synonym: "Something red" BROAD []

[Term]
id: HP:0000002
name: Anemia
synonym: "Low \"red\" count" EXACT layperson []
is_a: HP:0000001 ! Blood

[Term]
id: HP:0000003
name: Severe anemia
is_a: HP:0000002 ! Anemia

[Term]
id: HP:0000004
name: Old anemia
is_a: HP:0000002 ! Anemia
is_obsolete: true

[Term]
id: HP:0000005
name: Bone
"""

TABULAR = """<ICD10CM.tabular><section id="D50-D53"><desc>Nutritional anemias (D50-D53)</desc>
<diag><name>D50</name><desc>Iron deficiency anemia</desc>
<diag><name>D50.0</name><desc>Iron deficiency anemia secondary to blood loss (chronic)</desc></diag>
<diag><name>D50.9</name><desc>Iron deficiency anemia, unspecified</desc></diag></diag>
<diag><name>D51</name><desc>Vitamin B12 &amp; folate deficiency anemia</desc></diag>
<diag><name>D60</name><desc>Acquired pure red cell aplasia</desc></diag></section></ICD10CM.tabular>"""


@pytest.fixture(scope="module")
def lexicon() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "deploy" / "scripts" / "make_lexicon.py"
    spec = importlib.util.spec_from_file_location("make_lexicon", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_hpo_gives_names_and_exact_synonyms_of_a_term_and_all_below(lexicon: ModuleType) -> None:
    assert lexicon.hpo_terms(ONTOLOGY, "HP:0000001") == [
        "Blood", "The blood", "Anemia", 'Low "red" count', "Severe anemia",
    ]  # fmt: skip
    assert lexicon.hpo_terms(ONTOLOGY, "HP:0000005") == ["Bone"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("D50-D51", ["Iron deficiency anemia", "Iron deficiency anemia secondary to blood loss (chronic)",
                     "Iron deficiency anemia", "Vitamin B12 & folate deficiency anemia"]),
        ("D51", ["Vitamin B12 & folate deficiency anemia"]),
        ("D50.0", ["Iron deficiency anemia secondary to blood loss (chronic)"]),
        ("D60", ["Acquired pure red cell aplasia"]),
    ],
)  # fmt: skip
def test_icd_gives_the_descriptions_of_a_block_a_category_or_a_code(
    lexicon: ModuleType, block: str, expected: list[str]
) -> None:
    assert lexicon.icd_terms(TABULAR, block) == expected


def test_terms_are_short_and_each_there_once(lexicon: ModuleType) -> None:
    terms = ["Anemia", "anemia", "Iron deficiency anemia", "Iron deficiency anemia secondary to blood loss"]
    assert lexicon.shortened(terms, max_words=3) == ["Anemia", "Iron deficiency anemia"]


@pytest.mark.parametrize("block", ["D50-D53.1", "anemia", "Z99"])
def test_what_is_no_block_is_refused(lexicon: ModuleType, block: str) -> None:
    with pytest.raises(lexicon.LexiconError):
        lexicon.icd_terms(TABULAR, block)
    with pytest.raises(lexicon.LexiconError):
        lexicon.hpo_terms(ONTOLOGY, "HP:0000009")


def test_terms_make_a_labeller(lexicon: ModuleType) -> None:
    labeller = LexiconLabeller((lexicon.icd_terms(TABULAR, "D50"), lexicon.icd_terms(TABULAR, "D60")))
    assert labeller.label("No iron deficiency anemia; acquired pure red cell aplasia.") == (-1, 1)
