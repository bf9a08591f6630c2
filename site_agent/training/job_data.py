"""What a job names on this machine: its data file, its base model, and which of its records are for what."""

from __future__ import annotations

from pathlib import Path

from fl_protocol.spec.run_spec import RunSpec
from site_agent.jobs.job_dir import JobFileInvalidError, JobSpec
from site_agent.training.data import Dataset, Split, split_dataset
from site_agent.training.errors import (
    DatasetChangedError,
    DatasetFormatUnknownError,
    DatasetTooSmallError,
    NoUsableRecordsError,
)
from site_agent.training.formats import format_called
from site_agent.training.tasks import TASKS


def read_records(job: JobSpec) -> Dataset:
    """The records of the job's data file.

    Raises:
        DatasetError: it cannot be read.
    """
    return format_called(job.data.format).read(Path(job.data.path), patient_field=job.data.patient_field)


def read_registered_dataset(job: JobSpec, spec: RunSpec) -> Dataset:
    """The records of the job's data file, which must be the one that was registered, in a format of the run's task.

    Raises:
        DatasetError: it cannot be read, holds records of another kind, or is another file now.
    """
    formats = TASKS[spec.task.kind].formats
    if job.data.format not in formats:
        message = f"the run's task takes other records (it takes: {', '.join(sorted(formats))})"
        raise DatasetFormatUnknownError(message, format=job.data.format[:40])
    dataset = read_records(job)
    if job.data.sha256 is not None and job.data.sha256 != dataset.sha256:
        message = "the data file changed since it was registered; register it again"
        raise DatasetChangedError(message, expected=job.data.sha256, found=dataset.sha256)
    return dataset


def split_of_run(dataset: Dataset, spec: RunSpec) -> Split:
    """The dataset's records by their use in this run.

    Raises:
        DatasetTooSmallError: there are fewer records or patients than the run demands.
        NoUsableRecordsError: nothing is left to train on.
    """
    n_records, n_patients = len(dataset.records), dataset.n_patients
    if n_records < spec.data.min_records:
        message = "the dataset has fewer records than the run demands"
        raise DatasetTooSmallError(message, records=n_records, minimum=spec.data.min_records)
    if n_patients < spec.data.min_patients:
        message = "the dataset has fewer patients than the run demands"
        raise DatasetTooSmallError(message, patients=n_patients, minimum=spec.data.min_patients)
    evaluation = spec.evaluation
    split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
    if not split.training:
        raise NoUsableRecordsError("every record is held out", records=n_records)
    return split


def folder_of_base(job: JobSpec, spec: RunSpec) -> Path:
    """Where the run's base lies on this machine.

    Raises:
        JobFileInvalidError: job and run name different base models.
    """
    if job.base_model is None or job.base_model.sha256 != spec.base_model.sha256:
        raise JobFileInvalidError("job and run name different base models", field="base_model.sha256")
    return Path(job.base_model.path)
