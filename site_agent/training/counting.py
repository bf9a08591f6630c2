"""A job that trains nothing: a site's counts over the run's public list of codes. Loads no model."""

from __future__ import annotations

from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from fl_protocol.tensors.adapter_layout import AdapterLayout
from site_agent.jobs.job_dir import LAYOUT_FILE, JobResult, JobSpec, read_document
from site_agent.training.adapter_io import verify_layout
from site_agent.training.job_data import folder_of_base, read_registered_dataset, split_of_run
from site_agent.training.model_files import verify_model_folder
from site_agent.training.progress import ProgressReporter
from site_agent.training.tasks import TASKS
from site_agent.training.tasks.concept_vocabulary import write_counts


def count_codes(job_dir: Path, job: JobSpec, spec: RunSpec, *, progress: ProgressReporter) -> JobResult:
    """Count over the run's list of codes: the segments of one round of a vocabulary run. Loads no model.

    Raises:
        As ``perform_job``.
    """
    dataset = read_registered_dataset(job, spec)
    split = split_of_run(dataset, spec)
    folder = folder_of_base(job, spec)
    verify_model_folder(folder, spec.base_model.sha256)
    layout = TASKS[spec.task.kind].layout_without_weights(folder, spec)
    verify_layout(layout, spec, AdapterLayout.from_document(read_document(job_dir / LAYOUT_FILE)))
    return write_counts(job_dir, job, dataset=dataset, split=split, folder=folder, progress=progress)
