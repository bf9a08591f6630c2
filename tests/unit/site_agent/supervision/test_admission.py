"""By which name a site remembers what a round's payload holds: equal where what is held is, in whichever run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_protocol.clock import SystemClock
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId, SiteId
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from fl_protocol.tensors.code_list_layout import code_list_layout
from fl_protocol.testing.entropy import seeded_signer
from fl_protocol.testing.run_specs import run_spec_document
from site_agent.audit.store import AuditLog
from site_agent.db.tx import open_site_db
from site_agent.errors import OneShotSpentError
from site_agent.session.events import round_of
from site_agent.state.payload_memory import MaskedCohort, RevealedExchange
from site_agent.state.round_book import RoundBook
from site_agent.supervision.admission import evaluation_of
from site_agent.supervision.job_desk import payload_digest

RUN_ID = RunId("run-" + "c" * 26)
DATASET = "ab" * 32
ZEROS, ONE = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]


def vocabulary_run(**changes: object) -> RunSpec:
    whole: dict[str, object] = {
        "task": {"kind": "concept-vocabulary", "threshold": 50, "min_sites": 2},
        "adapter": {"kind": "published-codes"},
        "aggregation.algorithm": "thresholded-counts",
        "rounds": 1,
    }
    return parse_run_spec(run_spec_document({**whole, **changes}))


def state_of(values: list[float]) -> PublicState:
    return PublicState(version=0, adapter={"published": np.array(values, dtype=np.float32)})


def name_of_counts(spec: RunSpec, values: list[float] = ZEROS, dataset: str = DATASET) -> str:
    found = evaluation_of(spec, RoundKind.TRAIN, run_id=RUN_ID, state=state_of(values), dataset_sha256=dataset)
    assert not found.is_alone
    return found.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": {"kind": "concept-vocabulary", "threshold": 51, "min_sites": 3}},
        {"privacy.weight_cap": 77},
        {"local.seed": 4},
        {"cohort.sites": ["alpha", "beta", "gamma"]},
    ],
)
@pytest.mark.parametrize("values", [ZEROS, ONE])
def test_counts_of_one_list_and_dataset_have_one_name_whatever_a_run_says_beside(
    changes: dict[str, object], values: list[float]
) -> None:
    assert name_of_counts(vocabulary_run(**changes), values) == name_of_counts(vocabulary_run())


def test_counts_of_another_list_or_dataset_have_another_name() -> None:
    other_list = vocabulary_run(**{"base_model.sha256": "ee" * 32})
    names = {
        name_of_counts(vocabulary_run()),
        name_of_counts(other_list),
        name_of_counts(vocabulary_run(), ZEROS, "cd" * 32),
    }
    assert len(names) == 3


@pytest.mark.parametrize("other", [{}, {"base_model.sha256": "ee" * 32}])
def test_second_vocabulary_run_of_a_site_ends_too(tmp_path: Path, other: dict[str, object]) -> None:
    """Over another list, or over the same one with another bound and the same codes to publish."""
    db, clock = open_site_db(tmp_path / "site.db"), SystemClock()
    book = RoundBook(db, AuditLog(seeded_signer("site"), clock, "site:alpha"), clock)
    sites = [SiteId(name) for name in ("alpha", "beta", "gamma")]
    second = {"task": {"kind": "concept-vocabulary", "threshold": 49, "min_sites": 2}, **other}
    for letter, spec in {"a": vocabulary_run(), "b": vocabulary_run(**second)}.items():
        context = ExchangeContext(
            run_id=RunId("run-" + letter * 26), round_index=1, round_attempt=0, exchange_index=0, exchange_attempt=0
        )
        evaluation = evaluation_of(
            spec, RoundKind.EVALUATE, run_id=context.run_id, state=state_of(ONE), dataset_sha256=DATASET
        )
        assert not (evaluation.is_alone and book.is_spent(evaluation))
        book.join(round_of(context), manifest_sha256="11" * 32, public_state_sha256="22" * 32)
        name = payload_digest(last_payload(spec), context.run_id)
        cohort = MaskedCohort(context=context, sites=frozenset(sites), threshold=3)
        book.claim_mask(cohort, payload_sha256=name, evaluation=evaluation)
        revealed = RevealedExchange(context=context, h_survivors=b"h" * 32)
        book.ensure_revealed(revealed, survivors=sites, evaluation=evaluation)
        # In one run it is in one sum, as everything is.
        with pytest.raises(OneShotSpentError):
            book.claim_mask(cohort, payload_sha256=name, evaluation=evaluation)
    db.close()


def last_payload(spec: RunSpec) -> RingVector:
    """What a site sends in the last round of a vocabulary run, in which nothing is evaluated."""
    algorithm, layout = ALGORITHMS["thresholded-counts"], code_list_layout(3, kind="published-codes", config={})
    raw = {"eval_records": np.zeros(1, dtype=np.int64)}
    values = algorithm.weigh(raw, n_records=9, spec=spec, layout=layout, kind=RoundKind.EVALUATE)
    return encode_payload(values, algorithm.segments(spec, layout, RoundKind.EVALUATE))


def test_payload_that_holds_anything_has_one_name_in_every_run() -> None:
    vector = last_payload(vocabulary_run())
    vector.ring64[0] = 1
    names = {payload_digest(vector, RunId("run-" + letter * 26)) for letter in "ab"}
    assert len(names) == 1


def test_what_evaluates_is_named_by_its_adapter() -> None:
    spec = parse_run_spec(run_spec_document({}))
    found = [
        evaluation_of(spec, kind, run_id=RUN_ID, state=state_of(values), dataset_sha256=DATASET)
        for kind in (RoundKind.TRAIN, RoundKind.EVALUATE)
        for values in (ZEROS, ONE)
    ]
    assert [one.is_alone for one in found] == [False, False, True, True]
    assert found[0].sha256 == found[2].sha256 != found[1].sha256 == found[3].sha256
