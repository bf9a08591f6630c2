"""The vocabulary run: a site counts, over a public list of codes, how many of its training patients have each.

No model is loaded and nothing is trained. Patients that the split holds out are not counted: a vocabulary that they
shaped would know of them.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.jobs.job_dir import PAYLOAD_FILE, JobKind, JobResult, JobSpec, ProgressState, write_file
from site_agent.training.code_list import count_patients, published_layout, read_code_list
from site_agent.training.data import Dataset, Split
from site_agent.training.device import Compute
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.outcomes import result_without_training
from site_agent.training.progress import ProgressReporter
from site_agent.training.task_half import LoadedTask, TaskHalf
from site_agent.training.timelines.timeline import Timeline


def write_counts(
    job_dir: Path,
    job: JobSpec,
    *,
    dataset: Dataset,
    split: Split,
    folder: Path,
    progress: ProgressReporter,
) -> JobResult:
    """Count, and write what the secure sum is to add up; an evaluation round has nothing to add.

    Args:
        job_dir: gets the payload.
        job: what is to be done.
        dataset: this site's records.
        split: which of them may be counted.
        folder: of the list of codes, verified against the run.
        progress: is told.

    Raises:
        VocabularyInvalidError: the folder holds no list of codes.
    """
    started = time.monotonic()
    progress.report(ProgressState.LOADING, step=0, steps=1)
    codes = read_code_list(folder).codes
    if job.kind is JobKind.EVALUATE:
        segments = {"eval_records": np.zeros(1, dtype=np.int64)}
        n_listed = 0
    else:
        timelines = [record for record in split.training if isinstance(record, Timeline)]
        counts = count_patients(timelines, codes)
        segments = {"code_patients": counts}
        n_listed = int((counts > 0).sum())
    write_file(job_dir / PAYLOAD_FILE, bytes_from_tensors(segments))
    progress.report(ProgressState.LOADING, step=1, steps=1)
    return result_without_training(
        records=len(dataset.records),
        patients=dataset.n_patients,
        sha256=dataset.sha256,
        started=started,
        metrics={"codes_of_this_site": float(n_listed)},
    )


def vocabulary_layout(folder: Path, spec: RunSpec) -> AdapterLayout:
    """The layout of what the run publishes.

    Raises:
        VocabularyInvalidError: the folder holds no list of codes.
    """
    return published_layout(spec, len(read_code_list(folder).codes))


def no_model(folder: Path, spec: RunSpec, compute: Compute) -> LoadedTask:
    """Nothing can be trained here.

    Raises:
        BaseModelInvalidError: always: a list of codes is no model.
    """
    del folder, spec, compute
    raise BaseModelInvalidError("a list of codes is no model: it is counted over, not trained")


CONCEPT_VOCABULARY = TaskHalf(
    formats=frozenset({"timeline-rows", "omop", "fhir"}),
    load=no_model,
    layout_without_weights=vocabulary_layout,
)
"""The row of the table."""
