"""What a job's numbers follow from, as one digest: job, data, adapter, device, libraries. Knows no checkpoint."""

from __future__ import annotations

import hashlib
import json

import torch

from fl_protocol.folds.public_state import PublicState
from fl_protocol.spec.run_spec import RunSpec
from site_agent.jobs.job_dir import JobSpec
from site_agent.training.data import Dataset
from site_agent.training.device import Compute
from site_agent.training.sharding import n_processes
from site_agent.training.versions import installed_versions


def identity_of_job(
    job: JobSpec,
    spec: RunSpec,
    *,
    compute: Compute,
    state: PublicState,
    dataset: Dataset,
    private_sha256: str | None = None,
) -> str:
    """The digest of everything that the job's numbers follow from: a checkpoint of anything else is of no use."""
    facts = {
        "kind": job.kind.value,
        "run_id": job.run_id,
        "round": [job.round_index, job.round_attempt],
        "seed": job.seed,
        "run_spec": spec.to_document(),
        "global_sha256": state.digest(),
        "dataset_sha256": dataset.sha256,
        "private_sha256": private_sha256,
        "device": compute.device_name,
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
    }
    if n_processes() > 1:
        # Sums in another order have other last bits.
        facts["processes"] = n_processes()
    return hashlib.sha256(b"wardround/job/" + json.dumps(facts, sort_keys=True).encode()).hexdigest()
