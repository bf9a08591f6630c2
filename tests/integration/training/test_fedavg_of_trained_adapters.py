"""Three sites train a real LoRA; the secure sum's fold equals the plaintext weighted mean within the stated bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_protocol.codec.fixed_point import encode_payload, sum_error_bound
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.ids import SiteId
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from fl_protocol.testing.federation import Federation
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobResult, read_result
from tests.support.tiny_model import make_tiny_model
from tests.support.training_jobs import bound_spec, make_job, write_records

pytestmark = pytest.mark.training

N_RECORDS = {SiteId("a"): 40, SiteId("b"): 61, SiteId("c"): 97}
CLIP_NORM = 0.05
"""Below what some of these updates measure, so that clipping is part of what is compared."""


def test_secure_fold_of_trained_adapters_equals_the_plaintext_weighted_mean(tmp_path: Path) -> None:
    model = tmp_path / "model"
    make_tiny_model(model)
    privacy = {"clip_norm": CLIP_NORM}
    spec, layout, initial = bound_spec(model, privacy=privacy)
    raw: dict[SiteId, dict[str, NDArray[np.generic]]] = {}
    n_train: dict[SiteId, int] = {}
    for seed, (site, n_records) in enumerate(N_RECORDS.items()):
        folder = tmp_path / f"job-{site}"
        records = write_records(tmp_path / f"{site}.jsonl", n_records)
        make_job(folder, model_folder=model, records=records, seed=seed, privacy=privacy)
        program = [sys.executable, "-m", "site_agent.training", "run", str(folder)]
        subprocess.run(program, check=True, capture_output=True, timeout=240)
        result = read_result(folder)
        assert isinstance(result, JobResult)
        n_train[site] = result.records
        raw[site] = tensors_from_bytes((folder / PAYLOAD_FILE).read_bytes())

    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    payload_layout = algorithm.segments(spec, layout, RoundKind.TRAIN)
    weighed = {
        site: algorithm.weigh(raw[site], n_records=n_train[site], spec=spec, layout=layout, kind=RoundKind.TRAIN)
        for site in N_RECORDS
    }
    vectors = {site: encode_payload(payload, payload_layout) for site, payload in weighed.items()}
    outcome = Federation(tuple(N_RECORDS), payload_layout).exchange(vectors)
    sums = decode_sums(outcome.total, payload_layout, n_sites=3)
    folded = algorithm.fold(sums, initial, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=3)

    # The oracle: plain numpy in float64, written from the definition of weighted FedAvg with clipping.
    updates = {site: raw[site]["adapter_update"].astype(np.float64) for site in N_RECORDS}
    norms = {site: float(np.sqrt(np.sum(update**2))) for site, update in updates.items()}
    clipped = {site: update * min(1.0, CLIP_NORM / norms[site]) for site, update in updates.items()}
    total = sum(n_train.values())
    mean = sum(n_train[site] * clipped[site] for site in N_RECORDS) / total
    expected = layout.flatten(initial.adapter).astype(np.float64) + mean

    assert all(norm > 0 for norm in norms.values()), "the adapters were trained"
    assert any(norm > CLIP_NORM for norm in norms.values()), "at least one update is clipped"
    found = layout.flatten(folded.state.adapter).astype(np.float64)
    bound = sum_error_bound(payload_layout, "adapter_update", 3) * spec.privacy.weight_cap / total
    # Beyond the bound of the sum: the mean and the new weight are each rounded once to float32.
    rounding = 2.0**-24 * (np.abs(mean) + np.abs(expected)) + 2.0**-22 * CLIP_NORM
    assert np.all(np.abs(found - expected) <= bound + rounding)
    assert folded.report.n_records == total
    assert folded.report.n_clipped == sum(norm > CLIP_NORM for norm in norms.values())
    losses = sum(float(raw[site]["train_loss_sum"][0]) for site in N_RECORDS)
    tokens = sum(int(raw[site]["train_tokens"][0]) for site in N_RECORDS)
    assert folded.report.train_loss == pytest.approx(losses / tokens, abs=1e-4)
