"""Labels of sentences, decided by hand."""

from __future__ import annotations

import pytest

from fl_protocol.spec.tasks.image_text_contrastive import Labeller
from fl_protocol.spec.tasks.prompt_bank import ImageClass
from site_agent.training.entities.labellers import LABELLERS
from site_agent.training.entities.lexicon import LexiconLabeller

pytestmark = pytest.mark.training

TERMS = (
    ("red blood cell", "erythrocyte", "anemia"),
    ("white blood cell", "leukocyte", "neutrophil", "leukemia"),
    ("platelet", "thrombocyte", "giant platelet"),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Anemia.", (1, 0, 0)),
        ("An abnormality of a leukocyte", (0, 1, 0)),
        ("Giant platelets and hypersegmented NEUTROPHILS", (0, 1, 1)),
        ("Red blood cells are pale", (1, 0, 0)),
        ("red cells", (0, 0, 0)),
        ("No anemia.", (-1, 0, 0)),
        ("No anemia, but many leukocytes.", (-1, 1, 0)),
        ("Without evidence of leukemia", (0, -1, 0)),
        ("There is no increase of leukocytes", (0, 1, 0)),
        ("Not only erythrocytes but platelets", (1, 0, 1)),
        ("No fever. Anemia since May.", (1, 0, 0)),
        ("Platelets were not seen", (0, 0, -1)),
        ("Leukemia was ruled out; anemia is severe", (1, -1, 0)),
        ("Negative for leukemia and anemia", (-1, -1, 0)),
        ("Denied anemia last year; anemia now", (1, 0, 0)),
        ("no sign that in the last seven or eight weeks anemia came", (1, 0, 0)),
        ("Nonanemic", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_classes_are_affirmed_denied_or_not_spoken_of(text: str, expected: tuple[int, int, int]) -> None:
    assert LexiconLabeller(TERMS).label(text) == expected


def test_longest_term_wins_where_terms_of_classes_overlap() -> None:
    labeller = LexiconLabeller((("cell",), ("plasma cell",)))
    assert labeller.label("a plasma cell") == (0, 1)
    assert labeller.label("a cell") == (1, 0)


def test_term_of_two_classes_speaks_of_both() -> None:
    assert LexiconLabeller((("pancytopenia",), ("pancytopenia",))).label("Pancytopenia") == (1, 1)


def test_labeller_of_a_run_knows_names_and_terms_of_its_classes() -> None:
    classes = (
        ImageClass(name="red cell", prompts=("p",), terms=("anemia",)),
        ImageClass(name="platelet", prompts=("q",)),
    )
    labeller = LABELLERS[Labeller.LEXICON](classes)
    assert labeller.label("anemia, with large platelets") == (1, 1)
    assert labeller.label("red cells") == (1, 0)
