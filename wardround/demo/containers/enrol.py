"""The second stage: what an admin and each hospital's engineer do on their first morning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from wardround.demo.containers.places import Places
from wardround.demo.coordinator_host import CoordinatorHost
from wardround.demo.live_table import Progress
from wardround.demo.processes import Stage, Supervisor
from wardround.demo.site_host import SiteHost
from wardround.demo.workspace import Programs
from wardround.documents import section_of
from wardround.studies.catalogue import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSites:
    """The sites of the demonstration, by their state folders in this container."""

    places: Places
    study: Study
    names: tuple[str, ...]
    supervisor: Supervisor
    programs: Programs

    def hosts(self) -> tuple[SiteHost, ...]:
        """Each site, with its dataset as its own trainer sees it."""
        data = self.study.description.data
        return tuple(
            SiteHost(
                name=name,
                folder=self.places.workspace.site_dir(name),
                data_file=self.places.data_at_trainer / data.file_of(number, name),
                data_format=data.data_format,
                supervisor=self.supervisor,
                programs=self.programs,
            )
            for number, name in enumerate(self.names, start=1)
        )


def enrol(
    sites: ContainerSites, coordinator: CoordinatorHost, run_spec: dict[str, object], *, progress: Progress
) -> None:
    """Invite and enrol each site, tell each the others' fingerprints, write its policy, register its data.

    Raises:
        CommandError: somebody refused, or a program failed.
    """
    hosts = sites.hosts()
    with progress.step(f"{len(hosts)} hospitals are invited and enrol; keys are made at each and stay there"):
        enrolling = Stage(sites.supervisor)
        enrolled = {host.name: enrolling.add(host.name, partial(_fingerprint, host, coordinator)) for host in hosts}
        enrolling.run()
        pins = {name: fingerprint() for name, fingerprint in enrolled.items()}
    with progress.step("Each says what it permits, and has its trainer look at its data"):
        registering = Stage(sites.supervisor)
        for host in hosts:
            registering.add(host.name, partial(_configure, host, run_spec, pins, sites.places))
        registering.run()


def _fingerprint(host: SiteHost, coordinator: CoordinatorHost) -> str:
    return host.fingerprint() if host.is_enrolled else host.enrol(coordinator.client)


def _configure(host: SiteHost, run_spec: dict[str, object], pins: dict[str, str], places: Places) -> None:
    name = str(section_of(run_spec, "base_model").get("name"))
    host.configure(run_spec, pins=pins, base_model_dir=places.models / name)
    _use_spool(host.folder / "site.yaml")
    host.register_dataset(run_spec, purposes=[str(run_spec.get("purpose"))])


def _use_spool(site_yaml: Path) -> None:
    """The trainer is a container of its own, which shares the jobs folder and nothing else."""
    document = yaml.safe_load(site_yaml.read_text(encoding="utf-8"))
    document["runner"] = {"kind": "spool"}
    site_yaml.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
