"""From a study's name to what its table is filled with: base model, datasets, splits, settings."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.errors import FirstRunNeededError
from benchmarks.studies.progress import TableProgress
from benchmarks.studies.settings import common_settings, digest_of
from benchmarks.studies.splits import SiteParts, parts_of_site
from benchmarks.studies.workshop import Workshop
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.jobs.record_schema import PATIENT_FIELD
from site_agent.training.data import split_dataset
from site_agent.training.device import Compute, choose_compute
from site_agent.training.formats import format_called
from site_agent.training.shelf import ModelShelf
from site_agent.training.versions import installed_versions
from wardround.demo.base_model import BaseModels, WantedModel, with_base_model
from wardround.demo.processes import Supervisor
from wardround.demo.study import RunChoices, sites_of_study, spec_for_demo
from wardround.demo.workspace import Checkout, Programs, child_environment
from wardround.studies.catalogue import Study, check_data_folder, prepare_arguments

_PREPARE_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningOptions:
    """What the user typed; None is as the study, or the machine, has it."""

    sites: int | None = None
    data: Path | None = None
    models_dir: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlace:
    """Where a study's parts are made: the checkout, the folder of models, a folder that is removed afterwards."""

    checkout: Checkout
    models_dir: Path
    scratch: Path
    data_dir: Path | None
    supervisor: Supervisor
    programs: Programs


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStudy:
    """A study that is ready to be measured."""

    spec: RunSpec
    sites: tuple[SiteParts[Any], ...]
    common: Mapping[str, object]
    common_sha256: str
    workshop: Workshop


def open_study(
    study: Study, place: StudyPlace, *, n_sites: int | None, compute: Compute, shown: TableProgress
) -> OpenStudy:
    """Make base model and datasets, split, load.

    Args:
        study: which.
        place: where.
        n_sites: how many sites; None: as the study says.
        compute: device and precision.
        shown: hears of steps.

    Raises:
        CommandError, TrainerError, ProtocolError: something cannot be made, read or used.
    """
    if study.first_run_spec is not None:
        message = f"the base model of {study.name} follows from a run of its own"
        raise FirstRunNeededError(message, advice="Its page in docs/studies says which command measures it.")
    plan = study.description.table
    names = sites_of_study(study, n_sites)
    document = spec_for_demo(study.run_spec, RunChoices(sites=names, rounds=plan.rounds))
    shown.say(f"{study.name}: base model and the data of {len(names)} sites")
    models = BaseModels(
        models_dir=place.models_dir, checkout=place.checkout, supervisor=place.supervisor, programs=place.programs
    )
    for folder in (place.scratch, place.scratch.with_name("private")):
        folder.mkdir(parents=True, exist_ok=True)
    words = prepare_arguments(study, n_sites=len(names), out=place.scratch, data=place.data_dir)
    place.supervisor.run("prepare", (*place.programs.python, *words), timeout_s=_PREPARE_TIMEOUT_S)
    wanted = WantedModel(
        name=study.base_model_name,
        builder=study.description.base_model,
        study_folder=study.folder,
        places={"{data}": str(place.scratch)},
        own_folder=place.scratch.with_name("base-models"),
    )
    base = models.ensure(wanted)
    spec = parse_run_spec(with_base_model(document, base))
    fraction = 0.0 if plan.search is None else plan.search.validation_fraction
    data_sha256: dict[str, str] = {}
    sites: list[SiteParts[Any]] = []
    for number, name in enumerate(names, start=1):
        data = study.description.data
        dataset = format_called(data.data_format).read(
            place.scratch / data.file_of(number, name), patient_field=PATIENT_FIELD
        )
        evaluation = spec.evaluation
        split = split_dataset(dataset, holdout_fraction=evaluation.holdout_fraction, max_records=evaluation.max_records)
        data_sha256[name] = dataset.sha256
        parts = parts_of_site(
            name,
            n_records=len(dataset.records),
            training=split.training,
            held_out=split.held_out,
            validation_fraction=fraction,
            max_validation=evaluation.max_records,
        )
        sites.append(parts)
    surroundings = {
        "device": compute.device.type,
        "precision": compute.precision,
        "versions": installed_versions(),
    }
    common = common_settings(
        run_spec=spec.to_document(),
        rounds=spec.rounds,
        validation_fraction=fraction,
        data_sha256=data_sha256,
        surroundings=surroundings,
    )
    model = ModelShelf().take(base.folder, spec, sha256=spec.base_model.sha256, compute=compute)
    return OpenStudy(
        spec=spec,
        sites=tuple(sites),
        common=common,
        common_sha256=digest_of(common),
        workshop=Workshop(model, private_folder=place.scratch.with_name("private"), shown=shown),
    )


@contextlib.contextmanager
def study_at_hand(study: Study, *, options: OpeningOptions, shown: TableProgress) -> Iterator[OpenStudy]:
    """Make everything in a folder that is gone afterwards; the base model stays where models are.

    Raises:
        As ``open_study``; the end of a failed program's log is in the error.
    """
    checkout = Checkout.of_this_package()
    data_dir = check_data_folder(study, options.data)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # As the trainer does: the same table twice has the same figures.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        logs.mkdir()
        with Supervisor(logs, child_environment(os.environ, checkout)) as supervisor:
            place = StudyPlace(
                checkout=checkout,
                models_dir=(options.models_dir or checkout.models_dir).absolute(),
                scratch=Path(folder) / "data",
                data_dir=data_dir,
                supervisor=supervisor,
                programs=Programs(),
            )
            compute = choose_compute(DeviceChoice.AUTO)
            yield open_study(study, place, n_sites=options.sites, compute=compute, shown=shown)
