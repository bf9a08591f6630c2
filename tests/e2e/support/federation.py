"""One coordinator and its sites as processes of this machine, from a template, with everything a suite does to them.

Processes are known by name: ``coordinator`` (``api``, ``gateway``, ``driver`` ... where it is split) and a site's own.
What was killed while it was to run is started again with the same command line, as a supervisor would.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from tests.e2e.support import crashing
from tests.e2e.support.crash_points import CrashPlan, CrashPoint
from tests.e2e.support.processes import Processes, end_processes_of
from tests.e2e.support.template import ENVIRONMENT, Study, Template
from wardround.client.connection import Connection, read_token
from wardround.client.rest import RestClient
from wardround.client.run_upload import create_run
from wardround.demo.coordinator_host import (
    LEAD_PASSPHRASE,
    LEAD_TOKEN,
    PRIVACY_PASSPHRASE,
    PRIVACY_TOKEN,
    Signatory,
    signatories,
)
from wardround.documents import Document, text_of
from wardround.errors import UnavailableError

T = TypeVar("T")

COORDINATOR = "coordinator"
_CRASHING = str(Path(crashing.__file__))
_LOOK_EVERY_S = 0.1
_READY_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 420.0
"""Far more than any run here takes on an idle machine: a deadline ends a test that hangs, and measures nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a coordinator listens for sites. ``address`` is an address of this machine."""

    address: str = "127.0.0.1"


class Federation:
    """The processes, their folders, and a client with the admin's token."""

    def __init__(
        self,
        template: Template,
        folder: Path,
        *,
        sites: Sequence[str],
        place: Place | None = None,
        database_url: str | None = None,
    ) -> None:
        """Copy the template; nothing is started. ``database_url`` names a copy of the template's database, if any."""
        self.template = template
        self.folder = folder
        self.coordinator_dir = folder / "coordinator"
        self.site_names = tuple(sites)
        self.processes = Processes(folder / "logs", ENVIRONMENT)
        self._plans: dict[str, CrashPlan] = {}
        self._client: RestClient | None = None
        self._people: tuple[Signatory, Signatory] | None = None
        place = place or Place()
        shutil.copytree(template.coordinator, self.coordinator_dir)
        # What people keep: it does not lie in the coordinator's folder, which a test may destroy.
        self._token_file, self._root_file = folder / "admin.token", folder / "root.pem"
        kept = ("admin.token", "root.pem", LEAD_TOKEN, LEAD_PASSPHRASE, PRIVACY_TOKEN, PRIVACY_PASSPHRASE)
        for name in kept:
            shutil.copy2(self.coordinator_dir / name, folder / name)
        for name in self.site_names:
            shutil.copytree(template.site(name), self.site_dir(name))
        self.rest_port, self.gateway_port = free_port("127.0.0.1"), free_port(place.address)
        self.http1_port = free_port(place.address)
        self.gateway_address = f"{place.address}:{self.gateway_port}"
        self.http1_address = f"{place.address}:{self.http1_port}"
        self.configure_coordinator(
            rest={"port": self.rest_port},
            gateway={"host": place.address, "port": self.gateway_port, "http1_port": self.http1_port},
            # A driver that starts again waits for its own old lease; nothing here sleeps past a short one.
            driver={"poll_s": 0.1, "lease_s": 2.0},
        )
        if database_url is not None:
            self.configure_coordinator(database={"url": database_url})
        for name in self.site_names:
            addresses = {"address": self.gateway_address, "fallback_address": self.http1_address}
            self.configure_site(name, coordinator=addresses)
        self.define_coordinator()
        for name in self.site_names:
            self.define_site(name)

    # Folders and settings

    def site_dir(self, name: str) -> Path:
        return self.folder / "sites" / name

    def configure_coordinator(self, **sections: Mapping[str, object]) -> None:
        """Change keys of ``coordinator.yaml``; they hold from the next start."""
        _change_yaml(self.coordinator_dir / "coordinator.yaml", sections)

    def configure_site(self, name: str, **sections: Mapping[str, object]) -> None:
        """Change keys of a site's ``site.yaml``; they hold from the next start."""
        _change_yaml(self.site_dir(name) / "site.yaml", sections)

    # How programs are called

    def define_coordinator(
        self,
        *,
        dies_at: Iterable[CrashPoint] = (),
        name: str = COORDINATOR,
        roles: str = "",
        comes_back: bool = True,
        **environment: str,
    ) -> None:
        """The coordinator's program: whole, or some of its roles under another name; or one that dies at points.

        Processes of one role share their points, so that each is reached once. One that does not come back stays dead
        after it was killed.
        """
        words = ["serve", "--config", str(self.coordinator_dir / "coordinator.yaml")]
        words += ["--roles", roles] if roles else []
        self._define(name, "coordinator", words, dies_at, plan=roles or name, **environment)
        self.processes[name].comes_back = comes_back

    def define_site(
        self, name: str, *, dies_at: Iterable[CrashPoint] = (), prefix: Sequence[str] = (), program: str = ""
    ) -> None:
        """A site's agent, and its trainers with it; ``prefix`` puts it into a network namespace.

        ``program`` is a file that is run in the agent's place.
        """
        words = ["--state-dir", str(self.site_dir(name)), "start"]
        if program:
            self.processes.define(name, (*prefix, sys.executable, program, *words))
            return
        self._define(name, "site_agent", words, dies_at, prefix=prefix)

    def site_arguments(self, folder: Path) -> tuple[str, ...]:
        """How the agent of any state folder is called."""
        return (sys.executable, "-m", "site_agent", "--state-dir", str(folder), "start")

    def _define(
        self,
        name: str,
        module: str,
        words: Sequence[str],
        dies_at: Iterable[CrashPoint],
        *,
        prefix: Sequence[str] = (),
        plan: str = "",
        **environment: str,
    ) -> None:
        points = tuple(dies_at)
        program = [sys.executable, "-m", module]
        if points:
            self._plans[name] = CrashPlan.write(self.folder / "plans" / f"{plan or name}.json", points)
            program = [sys.executable, _CRASHING, str(self._plans[name].file), module]
        self.processes.define(name, (*prefix, *program, *words), **environment)

    # Starting and ending

    def start(self, *, sites: Sequence[str] | None = None) -> None:
        """Start the coordinator, wait until it answers, and start the sites."""
        self.start_coordinator()
        for name in self.site_names if sites is None else sites:
            self.processes.start(name)

    def start_coordinator(self, *names: str) -> None:
        """Start the coordinator, or the processes that it is split into, and wait until REST answers."""
        for name in names or (COORDINATOR,):
            self.processes.start(name)
        self.wait_until("the coordinator answers", lambda: self.client.get("/api/v1/me"), timeout_s=_READY_TIMEOUT_S)

    def end(self) -> None:
        """End everything that was started."""
        self._close_clients()
        self.processes.end_all()
        end_processes_of(self.folder)

    def _close_clients(self) -> None:
        for client in (self._client, *(person.client for person in self._people or ())):
            if client is not None:
                client.close()

    def suspend_process(self, name: str) -> None:
        """SIGSTOP: it is there, and does nothing."""
        os.kill(self.processes[name].pid, signal.SIGSTOP)

    def continue_process(self, name: str) -> None:
        """SIGCONT."""
        os.kill(self.processes[name].pid, signal.SIGCONT)

    def trainer_pid(self, site: str) -> int | None:
        """The number of the trainer that a site's agent started last; None while there is none."""
        for file in self.site_dir(site).glob("jobs/run-*/trainer.pid"):
            text = file.read_text()
            if text.isdigit():
                return int(text)
        return None

    # REST

    @property
    def client(self) -> RestClient:
        """Signed in as admin."""
        if self._client is None:
            self._client = self._signed_in(self._token_file)
        return self._client

    @property
    def lead(self) -> RestClient:
        """Signed in as the study lead, who creates the runs that the admin starts."""
        return self.people[0].client

    @property
    def people(self) -> tuple[Signatory, Signatory]:
        """The study lead and the privacy officer, who sign releases."""
        if self._people is None:
            url = f"https://127.0.0.1:{self.rest_port}"
            self._people = signatories(url, root_file=self._root_file, folder=self.folder)
        return self._people

    @property
    def root_file(self) -> Path:
        """The roots that people believe."""
        return self._root_file

    def sign_in_again(self) -> None:
        """Forget the clients: the next ones read root and token anew."""
        self._close_clients()
        self._client = self._people = None

    def _signed_in(self, token_file: Path) -> RestClient:
        url = f"https://127.0.0.1:{self.rest_port}"
        return RestClient(Connection(url=url, root_file=self._root_file, token=read_token(token_file)))

    def start_run(self, study: Study) -> str:
        """Create and start a run; its identifier."""
        spec, adapter = self.template.spec_of(study)
        run_id = text_of(create_run(self.lead, spec, adapter), "run_id")
        self.client.post(f"/api/v1/runs/{run_id}:start")
        return run_id

    def run(self, run_id: str) -> Document:
        return self.client.get(f"/api/v1/runs/{run_id}")

    def waits_for(self, run_id: str) -> str:
        """What ``wardround runs show`` says that the run waits for."""
        return str(json.loads(self.call_admin("--json", "runs", "show", run_id))["waits_for"])

    def call_admin(self, *words: str) -> str:
        """One command of ``wardround``, as the admin types it; what it answers."""
        answer = self.command(*words)
        assert answer.returncode == 0, (words, answer.stdout, answer.stderr)
        return answer.stdout

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same, whatever its exit code."""
        environment = {
            **ENVIRONMENT,
            "WARDROUND_URL": self.client.url,
            "WARDROUND_TOKEN_FILE": str(self._token_file),
            "WARDROUND_ROOT_FILE": str(self._root_file),
        }
        arguments = [sys.executable, "-m", "wardround", *words]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def rounds(self, run_id: str) -> list[Document]:
        """The latest attempt of each round, in order."""
        found = self.client.pages(f"/api/v1/runs/{run_id}/rounds")
        return sorted(found, key=lambda document: int(str(document["round_index"])))

    def counted(self, run_id: str, index: int) -> set[str]:
        """The sites that are in a committed round's sum; none before."""
        found = self.round(run_id, index)
        sites = found["counted_sites"] if found is not None else []
        assert isinstance(sites, list)
        return {str(site) for site in sites}

    def round(self, run_id: str, index: int) -> Document | None:
        """One round, once it is there."""
        return next((found for found in self.rounds(run_id) if found["round_index"] == index), None)

    def reason(self, run_id: str, index: int, site: str) -> str:
        """Why a site is no longer in a round; empty while it is."""
        found = self.round(run_id, index)
        rows = found.get("participations") if found is not None else None
        assert isinstance(rows, list | None)
        return next((str(row["reason"] or "") for row in rows or () if row["site_id"] == site), "")

    def exchange_state(self, run_id: str, index: int) -> str:
        """The state of a round's exchange; empty before there is one."""
        found = self.round(run_id, index)
        exchange = None if found is None else found.get("exchange")
        return str(exchange["state"]) if isinstance(exchange, dict) else ""

    def participation(self, run_id: str, index: int, site: str) -> str:
        """A site's state in a round; empty before it was invited."""
        found = self.round(run_id, index)
        rows = found.get("participations") if found is not None else None
        assert isinstance(rows, list | None)
        return next((str(row["state"]) for row in rows or () if row["site_id"] == site), "")

    # Waiting

    def wait_until(self, what: str, look: Callable[[], T], *, timeout_s: float = RUN_TIMEOUT_S) -> T:
        """Look until it is true; what was killed is started again, and a coordinator that is away is waited for.

        Raises:
            AssertionError: it did not become true in time, or a process ended by itself; with the end of every log.
        """
        deadline = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < deadline:
            self.processes.look()
            try:
                last = look()
            except UnavailableError as error:
                last = error
            else:
                if last:
                    return last  # type: ignore[return-value]
            time.sleep(_LOOK_EVERY_S)
        raise AssertionError(
            f"not within {timeout_s:.0f} s: {what} (last: {last!r}; not reached: {self.missed_crashes()})\n"
            f"{self.processes.tails()}"
        )

    def wait_for_end(self, run_id: str, *, state: str = "COMPLETED", timeout_s: float = RUN_TIMEOUT_S) -> Document:
        """Wait until the run has ended, and hold it to the state in which it has to end."""

        def look() -> Document | None:
            run = self.run(run_id)
            return run if run["state"] in {"COMPLETED", "CANCELLED", "FAILED"} else None

        run = self.wait_until(f"run {run_id} ends", look, timeout_s=timeout_s)
        assert run["state"] == state, f"{run['state']}: {run['reason']}\n{self.processes.tails()}"
        return run

    def missed_crashes(self) -> dict[str, list[str]]:
        """The crash points of every process that were not reached."""
        return {name: missed for name, plan in self._plans.items() if (missed := plan.missed())}

    def call_sites(self, *words: str) -> dict[str, dict[str, object]]:
        """One command of every site's program; its documents."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            answers = pool.map(lambda name: self.call_site(name, *words), self.site_names)
            return dict(zip(self.site_names, answers, strict=True))

    def call_site(self, name: str, *words: str) -> dict[str, object]:
        """One command of a site's program; its document, and its exit status under ``exit``."""
        arguments = [sys.executable, "-m", "site_agent", "--json", "--state-dir", str(self.site_dir(name)), *words]
        answer = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
        return {"exit": answer.returncode, **json.loads(answer.stdout)}

    def site_events(self, name: str, kind: str) -> list[dict[str, object]]:
        """The facts of a site's audit events of one kind, as its own program exports them."""
        file = self.folder / f"{name}-{kind}.jsonl"
        self.call_site(name, "audit", "export", str(file))
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        events = [json.loads(base64.b64decode(line["body"])) for line in lines if set(line) == {"seq", "body"}]
        file.unlink()
        return [event["facts"] for event in events if event["kind"] == kind]


def free_port(address: str) -> int:
    """A port that is free now; it is kept over restarts."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _change_yaml(path: Path, sections: Mapping[str, Mapping[str, object]]) -> None:
    document = yaml.safe_load(path.read_text()) or {}
    for name, keys in sections.items():
        document[name] = {**(document.get(name) or {}), **keys}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
