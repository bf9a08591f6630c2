"""The demonstration from an empty folder to a verified release, in the order in which people would do it.

set up       base model, datasets, coordinator; then the initial adapter beside enrolment, registration, agents
(first run)  where the base model follows from one: run, release, and the agents start again for the study's own
run          create, start, and look until it has ended
finish       two sign, download, verify the release; verify every log; show what was learned
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from wardround.client.run_upload import check_spec, with_adapter
from wardround.demo.base_model import BaseModel, BaseModels, WantedModel, with_base_model
from wardround.demo.coordinator_host import CoordinatorHost, start_coordinator
from wardround.demo.live_table import Progress
from wardround.demo.processes import Child, Stage, Supervisor
from wardround.demo.ready_federation import ReadyFederation
from wardround.demo.run_files import make_adapter, write_run_file
from wardround.demo.site_host import SiteHost
from wardround.demo.study import RunChoices, sites_of_study, spec_for_demo
from wardround.demo.summary import DemoReport
from wardround.demo.workspace import Checkout, DemoOptions, Programs, Workspace, child_environment
from wardround.documents import section_of
from wardround.errors import CommandError, DemoFailedError
from wardround.studies.catalogue import Study, check_data_folder, find_study, prepare_arguments
from wardround.studies.description import ProgramCall

_PREPARE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSurroundings:
    """What a demonstration gets from outside: tree, programs, environment, time, and somebody who shows progress."""

    checkout: Checkout
    programs: Programs
    environment: dict[str, str]
    progress: Progress
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """What will be run. Invariant: the specifications are faultless but for the digests that are made on the way."""

    study: Study
    site_names: tuple[str, ...]
    run_spec: dict[str, object]
    first_run_spec: dict[str, object] | None
    models_dir: Path
    data_dir: Path | None

    @property
    def purposes(self) -> tuple[str, ...]:
        """What each site's dataset is registered for."""
        specs = [spec for spec in (self.first_run_spec, self.run_spec) if spec is not None]
        return tuple(dict.fromkeys(str(spec.get("purpose")) for spec in specs))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of the demonstration: its specification, its base model, and where its files lie."""

    run_spec: dict[str, object]
    builder: ProgramCall | None
    workspace: Workspace

    @property
    def base_model_name(self) -> str:
        """Which base model it starts from."""
        return str(section_of(self.run_spec, "base_model").get("name", ""))


def run_demo(options: DemoOptions, surroundings: DemoSurroundings) -> DemoReport:
    """Run the whole demonstration.

    Raises:
        UsageInvalidError, NotFoundError: what was asked for cannot be; nothing was started.
        DemoFailedError: something failed on the way; everything was stopped and the work folder is kept.
    """
    study = find_study(options.study, surroundings.checkout.examples_dir)
    data_dir = check_data_folder(study, options.data)
    names = sites_of_study(study, options.sites)
    run_spec = spec_for_demo(study.run_spec, RunChoices(sites=names, rounds=options.rounds, seed=options.seed))
    first = None if study.first_run_spec is None else spec_for_demo(study.first_run_spec, RunChoices(sites=names))
    for spec in (run_spec, *(() if first is None else (first,))):
        check_spec(spec)
    workspace = Workspace.create(options, surroundings.checkout, now=surroundings.now)
    environment = child_environment(surroundings.environment, surroundings.checkout)
    surroundings.progress.say(f"Work folder: {workspace.root}")
    with Supervisor(workspace.logs, environment) as supervisor, _named_failure(workspace, supervisor):
        models_dir = (options.models_dir or surroundings.checkout.models_dir).absolute()
        plan = DemoPlan(
            study=study,
            site_names=names,
            run_spec=run_spec,
            first_run_spec=first,
            models_dir=models_dir,
            data_dir=data_dir,
        )
        report = _Demo(plan, workspace=workspace, supervisor=supervisor, surroundings=surroundings).run()
    if not (options.keep or workspace.is_named):
        workspace.discard_state()
    return report


class _Demo:
    """One demonstration under way."""

    def __init__(
        self, plan: DemoPlan, *, workspace: Workspace, supervisor: Supervisor, surroundings: DemoSurroundings
    ) -> None:
        self._plan = plan
        self._study = plan.study
        self._workspace = workspace
        self._supervisor = supervisor
        self._programs = surroundings.programs
        self._checkout = surroundings.checkout
        self._progress = surroundings.progress
        self._began = time.monotonic()
        self._connections = contextlib.ExitStack()
        self._pins: dict[str, str] = {}
        self._agents: dict[str, Child] = {}

    def run(self) -> DemoReport:
        """Set up, run, finish; where the study has a first run, that one before."""
        description, own = self._study.description, self._workspace
        with self._connections:
            planned = PlannedRun(run_spec=self._plan.run_spec, builder=description.base_model, workspace=own)
            first = self._first_run()
            early, host = self._set_up(first or planned)
            sites = tuple(self._site_host(name, number) for number, name in enumerate(self._plan.site_names, start=1))
            places = {"{data}": str(own.data)}
            if first is not None:
                made = self._make_ready(first, host, sites, base_model=early or self._ensure_model(first, places))
                made.closing().release(_perform(made))
                places |= {"{first_release}": str(made.workspace.release), "{first_base}": str(made.base_model_dir)}
                early = None
            federation = self._make_ready(planned, host, sites, base_model=early or self._ensure_model(planned, places))
            run_id = _perform(federation)
            return federation.report(self._study, run_id, federation.closing().close(run_id))

    def _first_run(self) -> PlannedRun | None:
        first, spec = self._study.description.first_run, self._plan.first_run_spec
        if first is None or spec is None:
            return None
        return PlannedRun(run_spec=spec, builder=first.base_model, workspace=self._workspace.of_first_run())

    def _set_up(self, planned: PlannedRun) -> tuple[BaseModel | None, CoordinatorHost]:
        """Datasets and coordinator, and beside them the base model of the run that comes first, if it needs neither."""
        is_early = planned.builder is None or not planned.builder.has_places
        with self._progress.step("Base model, datasets and coordinator"):
            stage = Stage(self._supervisor)
            model = stage.add("base model", partial(self._ensure_model, planned, {})) if is_early else None
            stage.add("datasets", self._prepare_data)
            coordinator = stage.add("coordinator", self._start_coordinator)
            stage.run()
        return None if model is None else model(), coordinator()

    def _make_ready(
        self, planned: PlannedRun, host: CoordinatorHost, sites: tuple[SiteHost, ...], *, base_model: BaseModel
    ) -> ReadyFederation:
        run_spec = with_base_model(planned.run_spec, base_model)
        write_run_file(planned.workspace, run_spec)
        what = "start again" if self._pins else "enrol, register their data and start"
        with self._progress.step(f"{len(sites)} sites {what}; the initial adapter is made"):
            stage = Stage(self._supervisor)
            adapter = stage.add(
                "adapter",
                partial(
                    make_adapter,
                    planned.workspace,
                    base_model.folder,
                    supervisor=self._supervisor,
                    programs=self._programs,
                ),
            )
            stage.add("sites", partial(self._bring_up_all, sites, host, run_spec, base_model.folder))
            stage.run()
        run_spec = with_adapter(run_spec, adapter())
        write_run_file(planned.workspace, run_spec)
        return ReadyFederation(
            coordinator=host,
            sites=sites,
            run_spec=run_spec,
            base_model_dir=base_model.folder,
            workspace=planned.workspace,
            supervisor=self._supervisor,
            programs=self._programs,
            progress=self._progress,
            began=self._began,
        )

    def _ensure_model(self, planned: PlannedRun, places: Mapping[str, str]) -> BaseModel:
        models = BaseModels(
            models_dir=self._plan.models_dir,
            checkout=self._checkout,
            supervisor=self._supervisor,
            programs=self._programs,
        )
        wanted = WantedModel(
            name=planned.base_model_name,
            builder=planned.builder,
            study_folder=self._study.folder,
            places=places,
            own_folder=self._workspace.base_models,
        )
        return models.ensure(wanted)

    def _prepare_data(self) -> str:
        arguments = prepare_arguments(
            self._study, n_sites=len(self._plan.site_names), out=self._workspace.data, data=self._plan.data_dir
        )
        return self._supervisor.run("prepare", (*self._programs.python, *arguments), timeout_s=_PREPARE_TIMEOUT_S)

    def _start_coordinator(self) -> CoordinatorHost:
        host = start_coordinator(self._workspace, self._supervisor, self._programs)
        self._connections.callback(host.close)
        return host

    def _site_host(self, name: str, number: int) -> SiteHost:
        return SiteHost(
            name=name,
            folder=self._workspace.site_dir(name),
            data_file=self._workspace.data / self._study.description.data.file_of(number, name),
            data_format=self._study.description.data.data_format,
            supervisor=self._supervisor,
            programs=self._programs,
        )

    def _bring_up_all(
        self, sites: tuple[SiteHost, ...], host: CoordinatorHost, run_spec: dict[str, object], base_model_dir: Path
    ) -> None:
        """Enrol all sites, then give each the fingerprints that the others told of themselves, and start it."""
        is_first = not self._pins
        if is_first:
            enrolling = Stage(self._supervisor)
            enrolled = {site.name: enrolling.add(site.name, partial(site.enrol, host.client)) for site in sites}
            enrolling.run()
            self._pins = {name: fingerprint() for name, fingerprint in enrolled.items()}
        starting = Stage(self._supervisor)
        for site in sites:
            starting.add(site.name, partial(self._bring_up, site, run_spec, base_model_dir, is_first=is_first))
        starting.run()

    def _bring_up(self, site: SiteHost, run_spec: dict[str, object], base_model_dir: Path, *, is_first: bool) -> None:
        if not is_first:
            self._supervisor.stop(self._agents[site.name])
        site.configure(run_spec, pins=self._pins, base_model_dir=base_model_dir)
        if is_first:
            site.register_dataset(run_spec, purposes=self._plan.purposes)
        self._agents[site.name] = site.start()


def _perform(federation: ReadyFederation) -> str:
    """Create, start, look until it has ended; returns the run's id."""
    run_id = federation.create_run()
    federation.start_run(run_id)
    federation.watch(run_id)
    return run_id


@contextlib.contextmanager
def _named_failure(workspace: Workspace, supervisor: Supervisor) -> Iterator[None]:
    """Whatever fails, the user learns which process it was and where the work folder is."""
    try:
        try:
            yield
        except DemoFailedError:
            raise
        except CommandError as error:
            # A coordinator that does not answer has perhaps ended: then its last words say more than the silence.
            supervisor.check_alive()
            raise DemoFailedError(str(error), advice=error.advice) from error
    except DemoFailedError as error:
        error.facts["work_dir"] = str(workspace.root)
        raise
