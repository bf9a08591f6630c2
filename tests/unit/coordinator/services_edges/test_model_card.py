# ruff: noqa: ANN001 # the types of fixtures live in conftest.py, which test folders cannot import
"""The card says what happened, in the form that a hub reads, and names what nobody can know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from coordinator.services.model_card import model_card
from coordinator.services.release_lineage import Lineage, read_lineage
from fl_protocol.spec.metrics import Metric
from fl_protocol.testing.run_specs import resolved_run_spec
from tests.support.released_run import FIRST, SECOND, CompletedRuns, state_of

# What a hub's front matter may hold, as its documentation lists it: https://huggingface.co/docs/hub/model-cards
HUB_KEYS = {
    "license",
    "license_name",
    "license_link",
    "base_model",
    "base_model_relation",
    "library_name",
    "pipeline_tag",
    "tags",
}


@pytest.fixture
def runs(resources) -> CompletedRuns:
    return CompletedRuns(resources=resources)


@pytest.fixture
def lineage(resources, runs) -> Lineage:
    runs.complete()
    runs.candidate()
    return resources.db.read("test", lambda session: read_lineage(session, FIRST))


@pytest.fixture
def card(lineage, clock) -> str:
    return model_card(lineage, release_id="rel-x", created_at=clock.now())


def test_front_matter_is_read_by_the_hubs_own_program(card, tmp_path) -> None:
    (tmp_path / "README.md").write_text(card)
    read = ModelCard.load(tmp_path / "README.md")
    data = read.data.to_dict()
    assert set(data) == HUB_KEYS
    assert (data["library_name"], data["base_model"]) == ("peft", "smollm2-135m-instruct")
    # ``other`` is the hub's word where the licence is none of its list; it then asks for a name and a link.
    assert (data["license"], bool(data["license_name"]), data["license_link"]) == ("other", True, "README.md")
    assert {"lora", "federated-learning", "instruction-tuning"} <= set(data["tags"])
    assert all(isinstance(tag, str) for tag in data["tags"])
    assert read.text.lstrip().startswith("# medical-qa-round-1")
    # Written out and read again it is the same: nothing of it depends on how YAML was spelt.
    assert ModelCard(str(read)).data.to_dict() == data


def test_hub_is_not_told_a_hospitals_dataset_as_if_it_were_one_of_its_own(card) -> None:
    assert "datasets" not in yaml.safe_load(card.split("---\n")[1])
    assert "`medical-qa`: registered, approved and kept by each hospital itself" in card


def test_card_says_the_sums_that_were_published_and_no_figure_of_one_site(card) -> None:
    assert "| Records, all sites together | 240 (a secure sum; a site with more than 10,000 counts as 10,000) |" in card
    assert "| before (initial adapter) | 3.0000 |" in card
    assert "| after (this adapter) | 1.0000 |" in card
    assert "Mean loss over completion tokens of 48 held-out records at the sites" in card
    assert "| Updates that were clipped, in each | 1, 1 |" in card
    assert "| Rounds | 2, sites counted in each: 3, 3 |" in card
    assert "| 0 | 3.0000 | 3.5000 |" in card
    assert "| 2 | 1.0000 | - |" in card


def test_card_says_plainly_that_the_worst_site_is_not_known_and_why(card) -> None:
    assert "Why the worst site's own loss is not here" in card
    assert "| sites at which this adapter does worse than the initial one | not asked for (`sites-made-worse`" in card
    assert "Nor did the run ask at how many sites it does worse" in card
    assert "the largest of several figures is no sum" in card
    assert "no differential-privacy guarantee" in card
    assert "the privacy ledger in `evidence/` is empty" in card


def compared(lineage: Lineage, worse: float | None, compared: float) -> Lineage:
    """The same run, had it asked at how many sites the adapter does worse."""
    spec = replace(
        lineage.spec, evaluation=replace(lineage.spec.evaluation, metrics=(Metric.LOSS, Metric.SITES_MADE_WORSE))
    )
    last = lineage.rounds[-1]
    found = {} if worse is None else {"sites-made-worse": worse, "sites-compared": compared}
    rounds = (*lineage.rounds[:-1], replace(last, report={**last.report, "metrics": found}))
    return replace(lineage, spec=spec, rounds=rounds)


@pytest.mark.parametrize(
    ("worse", "n_compared", "said"),
    [
        (0.0, 3.0, "0 of 3"),
        (1.0, 3.0, "1 of 3"),
        (3.0, 3.0, "3 of 3"),
        (1.0, 2.0, "1 of 2; 1 of the 3 sites in the sum had no held-out record"),
        (None, 0.0, "not evaluated"),
    ],
)
def test_card_of_a_run_that_asked_says_at_how_many_sites_the_adapter_does_worse(
    lineage, clock, worse, n_compared, said
) -> None:
    card = model_card(compared(lineage, worse, n_compared), release_id="rel-x", created_at=clock.now())
    assert f"| sites at which this adapter does worse than the initial one | {said} |" in card
    assert "larger by more than 1/1024 nat a unit" in card
    assert "the mean above may hide a site" in card
    assert "Nor did the run ask" not in card


def test_run_without_an_evaluation_claims_none(lineage, clock) -> None:
    silent = [replace(one, report={}) for one in lineage.rounds]
    card = model_card(replace(lineage, rounds=tuple(silent)), release_id="rel-x", created_at=clock.now())
    assert card.count("| not evaluated |") == 2
    assert "| Records, all sites together | not available |" in card


def test_card_names_the_release_that_it_was_made_from(resources, runs, lineage, clock) -> None:
    runs.complete(SECOND, initial=state_of(0, 0.0), weights_from=50.0)
    second = resources.db.read("test", lambda session: read_lineage(session, SECOND))
    card = model_card(second, release_id="rel-y", created_at=clock.now())
    assert "- Made from release: `rel-" + "a" * 26 + "`" in card


@pytest.mark.parametrize(
    "purpose",
    [
        "Purpose\n# A heading of its own\n\n| a | table |",
        "--- \nlicense: mit\n---",
        "<script>alert(1)</script> [click](javascript:alert(1)) `code`",
    ],
)
def test_purpose_that_the_author_wrote_makes_no_heading_table_tag_or_link(lineage, clock, purpose) -> None:
    spec = replace(lineage.spec, purpose=purpose)
    card = model_card(replace(lineage, spec=spec), release_id="rel-x", created_at=clock.now())
    line = next(line for line in card.splitlines() if line.startswith("- Purpose: "))
    unescaped = line.replace("\\<", "").replace("\\[", "").replace("\\|", "").replace("\\#", "").replace("\\`", "")
    assert not set("<[|#`") & set(unescaped)
    assert ModelCard(card).data.to_dict()["license"] == "other"


def test_card_of_a_whole_model_names_no_peft_and_says_how_it_is_put_together(lineage, clock) -> None:
    task = {"kind": "concept-timeline", "vocabulary_sha256": "cd" * 32}
    spec = resolved_run_spec({"task": task, "adapter": {"kind": "full"}})
    card = model_card(replace(lineage, spec=spec), release_id="rel-x", created_at=clock.now())
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["base_model_relation"], front["tags"][0]) == (
        "transformers",
        "finetune",
        "full",
    )
    assert "A whole model of the shape `smollm2-135m-instruct`, made across 3 hospitals" in card
    assert "assemble-model --release path/to/this/folder --base-model path/to/smollm2-135m-instruct" in card
    assert "PeftModel" not in card
    assert "saw the sum itself" not in card


def test_card_of_a_vocabulary_says_who_saw_the_sum(lineage, clock) -> None:
    task = {"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2, "site_minimum": 5}
    changes = {"task": task, "adapter": {"kind": "published-codes"}, "aggregation.algorithm": "thresholded-counts"}
    spec = resolved_run_spec({**changes, "rounds": 1})
    card = model_card(replace(lineage, spec=spec), release_id="rel-x", created_at=clock.now())
    assert "make-vocabulary --release path/to/this/folder --code-list path/to/smollm2-135m-instruct" in card
    assert "saw the sum itself" in card
