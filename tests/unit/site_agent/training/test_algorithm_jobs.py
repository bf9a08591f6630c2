"""Whole jobs on a tiny model under every algorithm and local rule: what is written is what the algorithm weighs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_protocol.codec.clipping import clip_l2
from fl_protocol.codec.fixed_point import encode_payload
from fl_protocol.codec.sums import decode_sums
from fl_protocol.folds import ALGORITHMS
from fl_protocol.folds.control_variate import control_of
from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.round_spec import RoundKind
from fl_protocol.tensors.safetensors_io import tensors_from_bytes
from site_agent.jobs.job_dir import NEXT_PRIVATE_FILE, PAYLOAD_FILE, PRIVATE_FILE, SITE_FOLDER, JobKind, JobResult
from site_agent.training.closing import close_job
from site_agent.training.shelf import ModelShelf
from tests.support.training_jobs import bound_spec, make_job

pytestmark = pytest.mark.training

SECTIONS: dict[str, dict[str, dict[str, object]]] = {
    "fedprox": {"local": {"rule": "fedprox"}},
    "scaffold": {"local": {"rule": "scaffold", "optimizer": "sgd"}},
    "fedmed": {"aggregation": {"algorithm": "fedmed"}},
    "fedmed-js": {"aggregation": {"algorithm": "fedmed", "attention": {"distance": "js", "gate": "always"}}},
    "sgd-by-round": {"local": {"optimizer": "sgd", "schedule": "cosine-by-round"}},
}


def payload_of(job_dir: Path) -> dict[str, np.ndarray]:
    return tensors_from_bytes((job_dir / PAYLOAD_FILE).read_bytes())


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_job_writes_what_its_algorithm_weighs_and_folds(
    tmp_path: Path, tiny_model: Path, records: Path, name: str
) -> None:
    # All 40 records count, so that the weight is 1 and the ring's step stays small beside the update.
    sections = {**SECTIONS[name], "privacy": {"weight_cap": 40}}
    spec = make_job(tmp_path / "job", model_folder=tiny_model, records=records, **sections)
    _, layout, initial = bound_spec(tiny_model, **sections)
    result = close_job(tmp_path / "job", shelf=ModelShelf())
    assert isinstance(result, JobResult), result
    algorithm = ALGORITHMS[spec.aggregation.algorithm]
    payload = algorithm.segments(spec, layout, RoundKind.TRAIN)
    raw = payload_of(tmp_path / "job")
    weighed = algorithm.weigh(raw, n_records=result.records, spec=spec, layout=layout, kind=RoundKind.TRAIN)
    sums = decode_sums(encode_payload(weighed, payload), payload, n_sites=1)
    folded = algorithm.fold(sums, initial, spec=spec, layout=layout, kind=RoundKind.TRAIN, n_sites=1)
    # The mean of one site is its update.
    moved = layout.flatten(dict(folded.state.adapter)) - layout.flatten(dict(initial.adapter))
    np.testing.assert_allclose(moved, raw["adapter_update"], atol=1e-6)
    assert (tmp_path / "job" / SITE_FOLDER / NEXT_PRIVATE_FILE).exists() is (name == "scaffold")
    if "fedmed" in name:
        assert raw["is_attentive"].tolist() == [int(name == "fedmed-js")]
        assert (raw["layer_distance"] > 0).any()


def test_two_rounds_of_scaffold_at_one_site_carry_its_control_variate(
    tmp_path: Path, tiny_model: Path, records: Path
) -> None:
    sections = SECTIONS["scaffold"]
    folders = [tmp_path / "round-0", tmp_path / "round-1"]
    spec = make_job(folders[0], model_folder=tiny_model, records=records, **sections)
    shelf = ModelShelf()
    close_job(folders[0], shelf=shelf)
    _, layout, initial = bound_spec(tiny_model, **sections)
    own = tensors_from_bytes((folders[0] / SITE_FOLDER / NEXT_PRIVATE_FILE).read_bytes())["own_control"]
    # Before the first round c and c_k are zero: c_k' = -x / L, with three steps at 0.01.
    update, _ = clip_l2(payload_of(folders[0])["adapter_update"], spec.privacy.clip_norm)
    np.testing.assert_allclose(own, -update / 0.03, rtol=1e-5)

    control = layout.unflatten(own * np.float32(0.25))
    state = PublicState(version=1, adapter=initial.adapter, server={f"control.{k}": v for k, v in control.items()})
    make_job(folders[1], model_folder=tiny_model, records=records, round_index=1, state=state, **sections)
    (folders[1] / SITE_FOLDER).mkdir()
    (folders[1] / SITE_FOLDER / PRIVATE_FILE).write_bytes((folders[0] / SITE_FOLDER / NEXT_PRIVATE_FILE).read_bytes())
    close_job(folders[1], shelf=shelf)
    after = tensors_from_bytes((folders[1] / SITE_FOLDER / NEXT_PRIVATE_FILE).read_bytes())["own_control"]
    second, _ = clip_l2(payload_of(folders[1])["adapter_update"], spec.privacy.clip_norm)
    c = layout.flatten(control_of(state.server, layout))
    np.testing.assert_allclose(after, own - c - second / np.float32(0.03), atol=1e-5)
    # The same job without a control variate goes elsewhere: the correction was at work.
    assert not np.array_equal(second, update)


def test_evaluation_under_scaffold_and_fedmed_adds_nothing(tmp_path: Path, tiny_model: Path, records: Path) -> None:
    for name in ("scaffold", "fedmed"):
        folder = tmp_path / name
        make_job(folder, model_folder=tiny_model, records=records, kind=JobKind.EVALUATE, **SECTIONS[name])
        assert isinstance(close_job(folder, shelf=ModelShelf()), JobResult)
        assert set(payload_of(folder)) == {"eval_loss_sum", "eval_tokens", "eval_records"}
        assert not (folder / SITE_FOLDER).exists()
