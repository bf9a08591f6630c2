"""The first stage: everything that needs the numeric libraries and no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from wardround.client.run_upload import check_spec, with_adapter
from wardround.demo.base_model import BaseModel, BaseModels, WantedModel, with_base_model
from wardround.demo.containers.places import Places
from wardround.demo.held_out import first_held_out_line
from wardround.demo.live_table import Progress
from wardround.demo.processes import Supervisor
from wardround.demo.run_files import make_adapter, write_run_file
from wardround.demo.showings import SHOWINGS, holdout_fraction_of
from wardround.demo.study import RunChoices, spec_for_demo
from wardround.demo.workspace import Checkout, Programs
from wardround.errors import UsageInvalidError
from wardround.studies.catalogue import Study, find_study, prepare_arguments

_PREPARE_TIMEOUT_S = 600.0


def prepare(
    places: Places,
    *,
    study_name: str,
    choices: RunChoices,
    checkout: Checkout,
    supervisor: Supervisor,
    programs: Programs,
    progress: Progress,
) -> None:
    """Make base model, datasets, specification and initial adapter.

    Raises:
        UsageInvalidError, NotFoundError: the study is not there, or not one that runs in containers.
        DemoFailedError: a program failed.
    """
    study = _study_for_containers(study_name, checkout, choices)
    run_spec = spec_for_demo(study.run_spec, choices)
    check_spec(run_spec)
    workspace = places.workspace
    for folder in (workspace.logs, workspace.data):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with progress.step(f"Datasets of {len(choices.sites)} hospitals, from {study.description.data.source}"):
        arguments = prepare_arguments(study, n_sites=len(choices.sites), out=workspace.data, data=None)
        supervisor.run("prepare", (*programs.python, *arguments), timeout_s=_PREPARE_TIMEOUT_S)
    _keep_question(places, study, run_spec, choices.sites[0])
    _share_out(places, study, choices.sites)
    with progress.step("The base model, converted once"):
        base_model = _ensure_model(places, study, checkout, supervisor, programs)
    run_spec = with_base_model(run_spec, base_model)
    write_run_file(workspace, run_spec)
    with progress.step("The initial adapter"):
        adapter = make_adapter(workspace, base_model.folder, supervisor=supervisor, programs=programs)
    write_run_file(workspace, with_adapter(run_spec, adapter))
    told = {"study": study_name, "base_model_dir": str(base_model.folder)}
    places.prepared_file.write_text(json.dumps(told) + "\n", encoding="utf-8")


def _study_for_containers(name: str, checkout: Checkout, choices: RunChoices) -> Study:
    study = find_study(name, checkout.examples_dir)
    needs = study.description
    reason = None
    if needs.data.folder is not None:
        reason = "needs a folder of yours"
    elif needs.first_run is not None:
        reason = "has a run before its own"
    elif needs.data.has_named_sites and not set(choices.sites) <= set(study.roster):
        reason = "has data that belong to other sites"
    elif needs.base_model is None or needs.base_model.has_places:
        reason = "has a base model that this container cannot make"
    if reason is not None:
        raise UsageInvalidError(
            f"the study {study.name} does not run in the demonstration's containers: it {reason}",
            advice=f"Run it without containers: make setup && .venv/bin/wardround demo --study {study.name}",
        )
    return study


def _keep_question(places: Places, study: Study, run_spec: dict[str, object], site: str) -> None:
    """Keep one held-out record, so that the last stage need not see any data."""
    if study.task_kind not in SHOWINGS:
        return
    first = places.workspace.data / study.description.data.file_of(1, site)
    line = first_held_out_line(first, holdout_fraction=holdout_fraction_of(run_spec))
    places.question_file.write_text(line, encoding="utf-8")


def _share_out(places: Places, study: Study, sites: tuple[str, ...]) -> None:
    """Move each site's dataset to its own volume, and leave nothing of it here."""
    for number, site in enumerate(sites, start=1):
        name = study.description.data.file_of(number, site)
        _move(places.workspace.data / name, places.data / site / name)
    shutil.rmtree(places.workspace.data)


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    shutil.move(source, target)
    for file in (target, *target.rglob("*")):
        file.chmod(file.stat().st_mode | (0o555 if file.is_dir() else 0o444))


def _ensure_model(
    places: Places, study: Study, checkout: Checkout, supervisor: Supervisor, programs: Programs
) -> BaseModel:
    models = BaseModels(models_dir=places.models, checkout=checkout, supervisor=supervisor, programs=programs)
    wanted = WantedModel(
        name=study.base_model_name,
        builder=study.description.base_model,
        study_folder=study.folder,
        places={},
        own_folder=places.models,
    )
    return models.ensure(wanted)
