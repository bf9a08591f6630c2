"""The demonstration from an empty folder to a verified release, in the order in which people would do it.

set_up       base model, datasets, coordinator; then the initial adapter beside enrolment, registration, agents
run          create, start, and look until it has ended
finish       two sign, download, verify the release; verify every log; show what was learned
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from wardround.client.run_upload import InitialAdapter, check_spec, create_run, read_initial_adapter, with_adapter
from wardround.demo.base_model import BaseModel, BaseModels, with_base_model
from wardround.demo.closing import ClosedRun, Closing
from wardround.demo.coordinator_host import CoordinatorHost, start_coordinator
from wardround.demo.live_table import Progress
from wardround.demo.picture import Picture, RoundLine, round_lines, site_line
from wardround.demo.processes import Supervisor, run_parallel
from wardround.demo.shown_metric import change_of
from wardround.demo.site_host import SiteHost
from wardround.demo.study import RunChoices, site_names, spec_for_demo
from wardround.demo.summary import DemoReport
from wardround.demo.workspace import Checkout, DemoOptions, Programs, Workspace, child_environment
from wardround.documents import Document, documents_of, optional_number_of, section_of, text_of
from wardround.errors import CommandError, DemoFailedError
from wardround.studies.catalogue import Study, check_data_folder, find_study, prepare_arguments

_Result = TypeVar("_Result")

_LOOK_EVERY_S = 1.0
_APPROVAL_TIMEOUT_S = 120.0
_ADAPTER_TIMEOUT_S = 300.0
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
    """What will be run. Invariant: the specification is faultless but for the digests that are made on the way."""

    study: Study
    site_names: tuple[str, ...]
    run_spec: dict[str, object]
    models_dir: Path
    data_dir: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyFederation:
    """Everything is up and nothing has run yet."""

    coordinator: CoordinatorHost
    sites: tuple[SiteHost, ...]
    run_spec: dict[str, object]
    base_model_dir: Path


def run_demo(options: DemoOptions, surroundings: DemoSurroundings) -> DemoReport:
    """Run the whole demonstration.

    Raises:
        UsageInvalidError, NotFoundError: what was asked for cannot be; nothing was started.
        DemoFailedError: something failed on the way; everything was stopped and the work folder is kept.
    """
    study = find_study(options.study, surroundings.checkout.examples_dir)
    data_dir = check_data_folder(study, options.data)
    names = site_names(study.description.sites if options.sites is None else options.sites)
    run_spec = spec_for_demo(study, RunChoices(sites=names, rounds=options.rounds, seed=options.seed))
    check_spec(run_spec)
    workspace = Workspace.create(options, surroundings.checkout, now=surroundings.now)
    environment = child_environment(surroundings.environment, surroundings.checkout)
    surroundings.progress.say(f"Work folder: {workspace.root}")
    with Supervisor(workspace.logs, environment) as supervisor, _named_failure(workspace, supervisor):
        models_dir = (options.models_dir or surroundings.checkout.models_dir).absolute()
        plan = DemoPlan(study=study, site_names=names, run_spec=run_spec, models_dir=models_dir, data_dir=data_dir)
        report = _Demo(plan, workspace=workspace, supervisor=supervisor, surroundings=surroundings).run()
    if not (options.keep or workspace.is_named):
        workspace.discard_state()
    return report


class _Demo:
    """One demonstration under way."""

    def __init__(
        self, plan: DemoPlan, *, workspace: Workspace, supervisor: Supervisor, surroundings: DemoSurroundings
    ) -> None:
        self._study = plan.study
        self._run_spec = plan.run_spec
        self._models_dir = plan.models_dir
        self._data_dir = plan.data_dir
        self._names = plan.site_names
        self._workspace = workspace
        self._supervisor = supervisor
        self._programs = surroundings.programs
        self._checkout = surroundings.checkout
        self._progress = surroundings.progress
        self._began = time.monotonic()
        self._connections = contextlib.ExitStack()

    def run(self) -> DemoReport:
        """Set up, run, finish."""
        with self._connections:
            federation = self._set_up()
            run_id = self._start_run(federation)
            with self._progress.watching():
                picture = self._watch(federation, run_id)
            self._refuse_unfinished(picture)
            closed = self._close(federation, run_id)
            return self._report(federation, run_id, closed)

    def _set_up(self) -> ReadyFederation:
        with self._progress.step("Base model, datasets and coordinator"):
            first = _Stage(self._supervisor)
            model = first.add("base model", self._ensure_base_model)
            first.add("datasets", self._prepare_data)
            coordinator = first.add("coordinator", self._start_coordinator)
            first.run()
        base_model, host = model(), coordinator()
        self._run_spec = with_base_model(self._run_spec, base_model)
        self._write_run_file()
        sites = tuple(self._site_host(name, number) for number, name in enumerate(self._names, start=1))
        with self._progress.step(
            f"{len(sites)} sites enrol, register their data and start; the initial adapter is made"
        ):
            second = _Stage(self._supervisor)
            adapter = second.add("adapter", partial(self._make_adapter, base_model.folder))
            second.add("sites", partial(self._bring_up_all, sites, host, base_model.folder))
            second.run()
        self._run_spec = with_adapter(self._run_spec, adapter())
        self._write_run_file()
        return ReadyFederation(coordinator=host, sites=sites, run_spec=self._run_spec, base_model_dir=base_model.folder)

    def _ensure_base_model(self) -> BaseModel:
        models = BaseModels(
            models_dir=self._models_dir,
            checkout=self._checkout,
            supervisor=self._supervisor,
            programs=self._programs,
        )
        return models.ensure(self._study)

    def _prepare_data(self) -> str:
        arguments = prepare_arguments(
            self._study, n_sites=len(self._names), out=self._workspace.data, data=self._data_dir
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
            data_file=self._workspace.data / self._study.description.data.file_of(number),
            data_format=self._study.description.data.data_format,
            supervisor=self._supervisor,
            programs=self._programs,
        )

    def _make_adapter(self, base_model_dir: Path) -> InitialAdapter:
        options = ("--base-model", str(base_model_dir), "--out", str(self._workspace.adapter), "--json")
        arguments = (*self._programs.trainer, "init-adapter", "--run-spec", str(self._workspace.run_file), *options)
        self._supervisor.run_json("init-adapter", arguments, timeout_s=_ADAPTER_TIMEOUT_S)
        return read_initial_adapter(self._workspace.adapter)

    def _write_run_file(self) -> None:
        text = yaml.safe_dump(self._run_spec, sort_keys=False, allow_unicode=True)
        self._workspace.run_file.write_text(text, encoding="utf-8")

    def _bring_up_all(self, sites: tuple[SiteHost, ...], host: CoordinatorHost, base_model_dir: Path) -> None:
        """Enrol all sites, then give each the fingerprints that the others told of themselves, and start it."""
        enrolling = _Stage(self._supervisor)
        enrolled = {site.name: enrolling.add(site.name, partial(site.enrol, host.client)) for site in sites}
        enrolling.run()
        pins = {name: fingerprint() for name, fingerprint in enrolled.items()}
        starting = _Stage(self._supervisor)
        for site in sites:
            starting.add(site.name, partial(self._bring_up, site, pins, base_model_dir))
        starting.run()

    def _bring_up(self, site: SiteHost, pins: dict[str, str], base_model_dir: Path) -> None:
        site.configure(self._run_spec, pins=pins, base_model_dir=base_model_dir)
        site.register_dataset(self._run_spec)
        site.start()

    def _start_run(self, federation: ReadyFederation) -> str:
        host = federation.coordinator
        adapter = read_initial_adapter(self._workspace.adapter)
        run_id = text_of(create_run(host.lead.client, federation.run_spec, adapter), "run_id")
        # Another person than the one who created it.
        host.client.post(f"/api/v1/runs/{run_id}:start")
        self._progress.say(f"Run {run_id} is started; each site's policy decides.")
        return run_id

    def _watch(self, federation: ReadyFederation, run_id: str) -> Picture:
        """Look until the run has ended, and notice what dies or stalls meanwhile."""
        client = federation.coordinator.client
        deadline = time.monotonic() + _APPROVAL_TIMEOUT_S
        while True:
            self._supervisor.check_alive()
            run = client.get(f"/api/v1/runs/{run_id}")
            picture = self._picture(federation, run, round_lines(client.pages(f"/api/v1/runs/{run_id}/rounds")))
            self._progress.show(picture)
            if picture.has_ended:
                return picture
            if picture.run_state == "AWAITING_SITES" and time.monotonic() > deadline:
                raise _unapproved(federation, run)
            time.sleep(_LOOK_EVERY_S)

    def _picture(self, federation: ReadyFederation, run: Document, rounds: tuple[RoundLine, ...]) -> Picture:
        return Picture(
            run_state=text_of(run, "state"),
            reason=None if run.get("reason") is None else str(run.get("reason")),
            waits_for=str(run.get("waits_for") or ""),
            sites=tuple(site_line(site.name, site.status_file) for site in federation.sites),
            rounds=rounds,
            seconds=time.monotonic() - self._began,
        )

    def _close(self, federation: ReadyFederation, run_id: str) -> ClosedRun:
        closing = Closing(
            coordinator=federation.coordinator,
            sites=federation.sites,
            run_spec=federation.run_spec,
            base_model_dir=federation.base_model_dir,
            workspace=self._workspace,
            supervisor=self._supervisor,
            programs=self._programs,
            progress=self._progress,
        )
        return closing.close(run_id)

    def _refuse_unfinished(self, picture: Picture) -> None:
        if picture.run_state == "COMPLETED":
            return
        reasons = [f"round {line.index}: {line.reason}" for line in picture.rounds if line.reason]
        raise DemoFailedError(
            f"the run ended as {picture.run_state} ({picture.reason or 'no reason given'})",
            advice="The logs of the sites say more.",
            log_tail=reasons,
        )

    def _report(self, federation: ReadyFederation, run_id: str, closed: ClosedRun) -> DemoReport:
        base_model = section_of(federation.run_spec, "base_model")
        metrics = closed.metrics
        rounds = documents_of(metrics, "rounds")
        return DemoReport(
            run_id=run_id,
            study=self._study.name,
            sites=tuple(site.name for site in federation.sites),
            base_model=str(base_model.get("name")),
            base_model_sha256=str(base_model.get("sha256")),
            rounds=closed.rounds,
            eval_loss_before=optional_number_of(metrics, "eval_loss_before"),
            eval_loss_after=optional_number_of(metrics, "eval_loss_after"),
            metrics={"rounds": list(rounds)},
            change=change_of(self._study.description.metric, rounds),
            generation=closed.generation,
            release_dir=self._workspace.release,
            work_dir=self._workspace.root,
            audit_rows=closed.audit_rows,
            seconds=time.monotonic() - self._began,
        )


class _Stage:
    """Tasks that run at the same time; what ``add`` returns gives the task's result once ``run`` is over."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tasks: dict[str, Callable[[], object]] = {}

    def add(self, name: str, task: Callable[[], _Result]) -> Callable[[], _Result]:
        results: list[_Result] = []
        self._tasks[name] = lambda: results.append(task())
        return lambda: results[0]

    def run(self) -> None:
        run_parallel(self._supervisor, self._tasks)


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


def _unapproved(federation: ReadyFederation, run: Document) -> DemoFailedError:
    approved = {str(approval.get("site_id")) for approval in documents_of(run, "approvals")}
    silent = next((site for site in federation.sites if site.name not in approved), None)
    message = f"not every site approved the run within {_APPROVAL_TIMEOUT_S:.0f} s: {run.get('waits_for')}"
    tail = () if silent is None else silent.log_tail()
    return DemoFailedError(message, advice="The site's log says which rule of its policy denied it.", log_tail=tail)
