"""Three sites count a vocabulary by a secure sum, make a base of it, and train one round on it: the whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.algorithm import FoldResult
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import SiteId
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from fl_protocol.testing.federation import Federation
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobResult
from site_agent.training.closing import close_job
from site_agent.training.code_list import make_code_list, make_vocabulary
from site_agent.training.model_files import digest_model_folder
from site_agent.training.shelf import ModelShelf
from site_agent.training.timeline_base import TimelineShape, make_timeline_base
from tests.support.timeline_jobs import CODES, bound, make_timeline_job, timeline_document, write_rows, write_vocabulary

pytestmark = pytest.mark.training

SITES = (SiteId("a"), SiteId("b"), SiteId("c"))
RARE = "AE/RARE"
EVALUATION = {"metrics": ["loss", "precision-at-5-next-new"], "holdout_fraction": 0.25, "max_records": 16}
Raw = dict[SiteId, dict[str, NDArray[np.generic]]]


def secure_round(
    raw: Raw, n_records: dict[SiteId, int], spec: RunSpec, layout: AdapterLayout, state: PublicState
) -> FoldResult:
    """What the agents and the coordinator make of three payloads."""
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    segments = algorithm.segments(spec, layout, RoundKind.TRAIN)
    vectors = {
        site: encode_payload(
            algorithm.weigh(raw[site], n_records=n_records[site], spec=spec, layout=layout, kind=RoundKind.TRAIN),
            segments,
        )
        for site in SITES
    }
    total = Federation(SITES, segments).exchange(vectors).total
    sums = decode_sums(total, segments, n_sites=3)
    return algorithm.fold(sums, state, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3)


def perform(
    folder: Path, document: dict[str, object], base: Path, rows: dict[SiteId, Path]
) -> tuple[Raw, dict[SiteId, int]]:
    """Each site's job."""
    raw: Raw = {}
    n_records: dict[SiteId, int] = {}
    for site in SITES:
        make_timeline_job(folder / site, document, base=base, rows=rows[site])
        result = close_job(folder / site, shelf=ModelShelf())
        assert isinstance(result, JobResult), result
        raw[site] = tensors_from_bytes((folder / site / PAYLOAD_FILE).read_bytes())
        n_records[site] = result.records
    return raw, n_records


def test_three_sites_make_a_vocabulary_and_train_on_it(tmp_path: Path) -> None:
    # Every site has the common codes; one site alone has a rare one, in many patients.
    rows = {site: write_rows(tmp_path / f"{site}.csv", 30, seed=number) for number, site in enumerate(SITES)}
    lines = [f"alone-{n},2019-01-01,{RARE},AE,F" for n in range(20)]
    rows[SITES[0]].write_text(rows[SITES[0]].read_text() + "\n".join(lines) + "\n")

    code_list = tmp_path / "list"
    make_code_list(write_vocabulary(tmp_path / "codes.txt", (*CODES, RARE)), out=code_list)
    counting = timeline_document(
        digest_model_folder(code_list),
        "",
        task={"kind": "concept-vocabulary", "threshold": 5, "min_sites": 2, "site_minimum": 2},
        adapter={"kind": "published-codes"},
        evaluation={"holdout_fraction": 0.25},
    )
    counting |= {"aggregation": {"algorithm": "thresholded-counts"}, "rounds": 1}
    spec, layout, state = bound(counting, code_list)
    raw, n_records = perform(tmp_path / "count", counting, code_list, rows)
    assert int(raw[SITES[0]]["code_patients"][-1]) >= 5, "the rare code passes the threshold at its one site"
    folded = secure_round(raw, n_records, spec, layout, state)
    release = tmp_path / "release"
    release.mkdir()
    (release / "model.safetensors").write_bytes(bytes_from_tensors(dict(folded.state.adapter)))
    made = make_vocabulary(release, code_list=code_list, out=tmp_path / "vocab.txt")
    assert (tmp_path / "vocab.txt").read_text().splitlines() == list(CODES)

    base = tmp_path / "base"
    shape = TimelineShape(layers=1, heads=2, width=16, max_length=32)
    make_timeline_base(tmp_path / "vocab.txt", out=base, shape=shape, seed=7)
    training = timeline_document(
        digest_model_folder(base),
        str(made["vocabulary_sha256"]),
        evaluation=EVALUATION,
        local={"learning_rate": 0.02, "steps": 5, "batch_size": 8},
    )
    spec, layout, state = bound(training, base)
    raw, n_records = perform(tmp_path / "train", training, base, rows)
    folded = secure_round(raw, n_records, spec, layout, state)

    # The oracle: the plain weighted mean in float64; clip_norm is beyond every update here.
    updates = {site: raw[site]["adapter_update"].astype(np.float64) for site in SITES}
    assert max(float(np.linalg.norm(update)) for update in updates.values()) < spec.privacy.clip_norm
    total = sum(n_records.values())
    mean = sum(n_records[site] * updates[site] for site in SITES) / total
    expected = layout.flatten(dict(state.adapter)).astype(np.float64) + mean
    np.testing.assert_allclose(layout.flatten(dict(folded.state.adapter)), expected, atol=1e-4)
    hits = sum(int(raw[site]["eval_next_new_hits_5"][0]) for site in SITES)
    positions = sum(int(raw[site]["eval_next_new_positions"][0]) for site in SITES)
    assert folded.report.metrics["precision-at-5-next-new"] == pytest.approx(hits / positions)
    assert folded.report.n_records == total
