"""deploy/compose/site.yml as hospitals run it: an engine in a network namespace whose only way out is a proxy.

Three hospitals enrol by README.md's steps, on a machine that has no route but the cable to squid, which allows CONNECT
to the coordinator's ports alone; `egress.nft` lets their agents reach that proxy and nothing else. One run goes to its
release.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tests.containers.conftest import MakeCoordinator
from tests.containers.support.probes import PROBE, probed
from tests.containers.support.second_engine import copy_images, engine_in
from tests.containers.support.stack import ROOT, Stack, project_name
from tests.containers.support.study import NAME
from tests.e2e.support.tiny_study import MODEL_NAME
from tests.support.namespace import Namespace, network_namespace
from tests.support.proxies import Squid, squid
from wardround.demo.coordinator_host import CoordinatorHost, sign_in
from wardround.demo.live_table import PlainProgress
from wardround.demo.processes import Supervisor
from wardround.demo.ready_federation import ReadyFederation
from wardround.demo.run_files import make_adapter, write_run_file
from wardround.demo.site_host import policy_for_run
from wardround.demo.study import RunChoices, spec_for_demo
from wardround.demo.workspace import Checkout, Programs, Workspace, child_environment
from wardround.documents import text_of

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

SITES = ("st-mary", "charite", "ucsf")
COMPOSE = ROOT / "deploy" / "compose"
_USER = 10001
_ASKED_NOTHING = "error:transaction-end-before-headers"


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One hospital's stack, and its engineer's folder."""

    name: str
    stack: Stack
    folder: Path
    told: dict[str, str] = field(default_factory=dict)

    def site(self, *words: str) -> dict[str, object]:
        """`wardround-site` in the agent's container, as the page's alias calls it."""
        done = self.stack.run_in("agent", "wardround-site", "--json", *words, timeout_s=600)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout))


@dataclass(frozen=True, kw_only=True)
class Town:
    """All that the tests of this module look at."""

    coordinator: Stack
    people: CoordinatorHost
    hospitals: tuple[Hospital, ...]
    proxy: Squid
    namespace: Namespace
    elsewhere: Namespace
    supervisor: Supervisor
    workspace: Workspace
    run_spec: dict[str, object]
    models: Path
    listener_port: int


@pytest.fixture(scope="module")
def town(
    make_coordinator: MakeCoordinator, images: dict[str, str], study: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Town]:
    """A coordinator, and three hospitals that have done all of README.md but the last step."""
    folder = tmp_path_factory.mktemp("town")
    engine_folder = Path(f"/var/tmp/wrtest-{os.getpid()}")
    with network_namespace() as elsewhere, network_namespace() as namespace:
        coordinator = make_coordinator(
            "coordinator",
            WARDROUND_PUBLIC_NAME=elsewhere.outside_address,
            WARDROUND_SITES_ADDRESS=elsewhere.outside_address,
        )
        coordinator.compose("up", "--detach", "--wait", "coordinator", timeout_s=600)
        ports = tuple(
            int(coordinator.environment[f"WARDROUND_{name}_PORT"])
            for name in ("GATEWAY", "ENROLMENT", "GATEWAY_HTTP1", "ENROLMENT_HTTP1")
        )
        listener = socket.create_server((namespace.outside_address, 0))
        with (
            listener,
            squid(folder / "squid", connect_ports=ports, host=namespace.outside_address) as proxy,
            engine_in(namespace, engine_folder, images) as inside,
            Supervisor(_made(folder / "logs"), child_environment(os.environ, Checkout(root=ROOT))) as supervisor,
        ):
            loaded_s = copy_images(_images_of(images), images, inside)
            print(f"\nimages into the hospital's engine: {loaded_s:.0f} s")
            people = _sign_in(coordinator, folder)
            workspace = Workspace(root=_made(folder / "lead"), is_named=True)
            models, run_spec = _prepare(study / NAME, workspace, supervisor, folder)
            hospitals = tuple(
                _hospital(name, number, folder=folder, models=models, environment=inside, proxy=proxy)
                for number, name in enumerate(SITES, start=1)
            )
            try:
                _mornings(hospitals, people, run_spec, supervisor)
                yield Town(
                    coordinator=coordinator,
                    people=people,
                    hospitals=hospitals,
                    proxy=proxy,
                    namespace=namespace,
                    elsewhere=elsewhere,
                    supervisor=supervisor,
                    workspace=workspace,
                    run_spec=run_spec,
                    models=models,
                    listener_port=listener.getsockname()[1],
                )
            finally:
                people.close()
                for hospital in hospitals:
                    hospital.stack.down()


def test_agents_reach_the_proxy_and_nothing_else(town: Town) -> None:
    hospital, address = town.hospitals[0], town.namespace.outside_address
    # Without rules, everything on the cable is reached: the check below means something.
    assert _reaches(hospital, address, town.listener_port)
    _shut_the_door(town)
    for one in town.hospitals:
        assert not _reaches(one, address, town.listener_port)
        assert _reaches(one, address, town.proxy.port)
        assert not _reaches(one, town.elsewhere.outside_address, int(_port(town, "GATEWAY")))
        found = probed(one.stack, "agent", writable=("/srv/wardround", "/srv/wardround/jobs", "/tmp"))
        assert (found.reached, found.resolved, found.records, found.modules) == ({}, {}, (), ())
        assert (found.uid, set(found.capabilities.values()), found.sockets) == (_USER, {0}, ())
        assert found.read_only == (*PROBE.system_folders, "/etc/wardround")


def test_trainer_of_a_hospital_has_no_network_and_only_reads_its_data(town: Town) -> None:
    found = probed(town.hospitals[0].stack, "trainer", writable=("/srv/wardround/jobs", "/tmp"))
    assert (found.interfaces, found.reached, found.resolved, found.secrets) == (("lo",), {}, {}, ())
    assert found.read_only == (*PROBE.system_folders, "/data", "/models")
    assert found.records == ("/data/site-1.jsonl",)


def test_hospitals_behind_a_proxy_take_part_in_a_run_to_its_release(town: Town) -> None:
    federation = ReadyFederation(
        coordinator=town.people,
        sites=(),
        run_spec=town.run_spec,
        base_model_dir=town.models / MODEL_NAME,
        workspace=town.workspace,
        supervisor=town.supervisor,
        programs=Programs(),
        progress=PlainProgress(_console()),
        began=time.monotonic(),
        patience_s=120.0,
    )
    run_id = federation.create_run()
    federation.start_run(run_id)
    victim = town.hospitals[1].stack
    victim.wait_until("a trainer is at work", lambda: "job begins: job=run-" in victim.logs("trainer"), timeout_s=600)
    life = _heartbeat(town.hospitals[1])
    # The kernel's way of making room; the engine starts another.
    os.kill(int(str(victim.inspect("trainer")["State"]["Pid"])), signal.SIGKILL)  # type: ignore[index]
    federation.watch(run_id)
    assert _heartbeat(town.hospitals[1]) != life
    federation.closing().release(run_id)
    counted = [line["counted_sites"] for line in town.people.client.pages(f"/api/v1/runs/{run_id}/rounds")]
    assert len(counted) == 4
    assert all(sorted(sites) == sorted(SITES) for sites in counted)
    for hospital in town.hospitals:
        assert hospital.site("audit", "verify")["size"] > 10
    allowed = {f"{town.elsewhere.outside_address}:{_port(town, name)}" for name in ("GATEWAY", "ENROLMENT")}
    asked = {line.split(" CONNECT ")[1].split()[0] for line in town.proxy.requests() if " CONNECT " in line}
    assert asked
    assert asked <= allowed
    # A connection that ended before it asked for anything, such as those of the test beside this one, is no request.
    assert not [line for line in town.proxy.requests() if " CONNECT " not in line and _ASKED_NOTHING not in line]


def test_status_and_doctor_of_a_hospital_say_that_all_is_well(town: Town) -> None:
    for hospital in town.hospitals:
        assert hospital.site("status")["agent"]["is_running"] is True  # type: ignore[index]
        assert hospital.stack.inspect("agent")["State"]["Health"]["Status"] == "healthy"  # type: ignore[index]


# What the people do


def _sign_in(coordinator: Stack, folder: Path) -> CoordinatorHost:
    over = folder / "handover"
    copied = coordinator.docker("cp", f"{coordinator.container('init')}:/srv/handover", str(over))
    assert copied.returncode == 0, copied.stderr
    url = f"https://127.0.0.1:{coordinator.environment['WARDROUND_REST_PORT']}"
    people = _made(folder / "people")
    return sign_in(url, root_file=over / "root.pem", admin_token_file=over / "admin.token", folder=people)


def _prepare(study: Path, workspace: Workspace, supervisor: Supervisor, folder: Path) -> tuple[Path, dict[str, object]]:
    """Base model, data and specification, as a study lead has them; the digest by the trainer's own program."""
    models, data = _made(folder / "models"), _made(folder / "data")
    supervisor.run("base", (sys.executable, str(study / "make_base.py"), "--out", str(models / MODEL_NAME), "--json"))
    supervisor.run("data", (sys.executable, str(study / "prepare.py"), "--sites", "3", "--out", str(data)))
    digest = (sys.executable, "-m", "site_agent.training", "digest-model", str(models / MODEL_NAME), "--json")
    sha256 = text_of(supervisor.run_json("digest", digest), "base_model_sha256")
    spec = spec_for_demo(yaml.safe_load((study / "run.yaml").read_text()), RunChoices(sites=SITES))
    spec["base_model"] = {"name": MODEL_NAME, "sha256": sha256}
    write_run_file(workspace, spec)
    make_adapter(workspace, models / MODEL_NAME, supervisor=supervisor, programs=Programs())
    for path in (models, *models.rglob("*")):
        path.chmod(0o755)
    return models, spec


def _hospital(
    name: str, number: int, *, folder: Path, models: Path, environment: dict[str, str], proxy: Squid
) -> Hospital:
    own = _made(folder / name)
    data, config, secrets = (_made(own / part) for part in ("data", "config", "secrets"))
    (folder / "data" / f"site-{number}.jsonl").rename(data / f"site-{number}.jsonl")
    variables = {
        "WARDROUND_COORDINATOR": "to-be-told:1",
        "WARDROUND_ROOT_FINGERPRINT": "to-be-told",
        "WARDROUND_ENROLMENT_CODE_FILE": str(secrets / "enrolment.code"),
        "WARDROUND_PROXY": proxy.url,
        "WARDROUND_BRIDGE": f"wr-egress-{number}",
        "WARDROUND_DATA_DIR": str(data),
        "WARDROUND_MODELS_DIR": str(models),
        "WARDROUND_BASE_MODELS": json.dumps({MODEL_NAME: {"path": f"/models/{MODEL_NAME}"}}),
        "WARDROUND_CONFIG_DIR": str(config),
        "WARDROUND_AGENT_IMAGE": _images_of(environment)[0],
        "WARDROUND_TRAINER_IMAGE": _images_of(environment)[1],
        "WARDROUND_TRAINER_THREADS": "1",
        "WARDROUND_TRAINER_MEMORY": "2G",
    }
    # A dictionary of its own, since the invitation tells more.
    told = {**environment, **variables}
    stack = Stack(name=project_name(name), files=(COMPOSE / "site.yml", COMPOSE / "site.cpu.yml"), environment=told)
    return Hospital(name=name, stack=stack, folder=own, told=told)


def _mornings(
    hospitals: tuple[Hospital, ...], people: CoordinatorHost, run_spec: dict[str, object], supervisor: Supervisor
) -> None:
    """README.md, step by step, at each hospital."""
    pins = {}
    for hospital in hospitals:
        invitation = people.client.post("/api/v1/sites", {"name": hospital.name})
        hospital.told["WARDROUND_COORDINATOR"] = text_of(invitation, "enrolment_address")
        hospital.told["WARDROUND_ROOT_FINGERPRINT"] = text_of(invitation, "root_fingerprint")
        code = hospital.folder / "secrets" / "enrolment.code"
        code.write_text(text_of(invitation, "code") + "\n")
        code.chmod(0o400)
        os.chown(code, _USER, _USER)
        hospital.stack.compose("up", "--detach", "--wait", "trainer", timeout_s=600)
        hospital.stack.compose("run", "--rm", "enrol", timeout_s=300)
        template = ("run", "--rm", "--no-TTY", "--entrypoint", "cat", "agent", "/srv/wardround/policy.yaml")
        (hospital.folder / "config" / "policy.yaml").write_text(hospital.stack.compose(*template))
        hospital.stack.compose("up", "--detach", "--wait", timeout_s=600)
        pins[hospital.name] = str(hospital.site("identity", "show")["signing_key_sha256"])
    for number, hospital in enumerate(hospitals, start=1):
        for name, pin in pins.items():
            if name != hospital.name:
                hospital.site("peers", "add", name, pin)
        _move_in(hospital.folder / "config" / "policy.yaml", policy_for_run(run_spec))
        hospital.site("policy", "check", "/etc/wardround/policy.yaml")
        dataset = {
            "name": "tiny-definitions",
            "path": f"/data/site-{number}.jsonl",
            "format": "jsonl",
            "purposes": [run_spec["purpose"]],
        }
        _move_in(hospital.folder / "config" / "dataset.yaml", dataset)
        registered = hospital.site("datasets", "register", "/etc/wardround/dataset.yaml")
        assert registered["records"] in {211, 223, 227}
        hospital.stack.compose("up", "--detach", "--wait", timeout_s=600)


def _shut_the_door(town: Town) -> None:
    """`egress.nft`, with this hospital's proxy as the only way out and three agents' networks."""
    rules = (COMPOSE / "egress.nft").read_text().splitlines()
    chosen = {
        "define agents": 'define agents = { "wr-egress-1", "wr-egress-2", "wr-egress-3" }',
        "define ways_out": f"define ways_out = {{ {town.namespace.outside_address} . {town.proxy.port} }}",
    }
    lines = [next((new for old, new in chosen.items() if line.startswith(old)), line) for line in rules]
    file = town.workspace.root / "egress.nft"
    file.write_text("\n".join(lines) + "\n")
    town.namespace.run("nft", "--file", str(file))


def _reaches(hospital: Hospital, address: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(({address!r}, {port}), 3).close()"
    return hospital.stack.run_in("agent", "python", "-c", code).returncode == 0


def _heartbeat(hospital: Hospital) -> str:
    done = hospital.stack.run_in("agent", "cat", "/srv/wardround/jobs/trainer.json")
    return str(json.loads(done.stdout)["life"])


def _port(town: Town, name: str) -> str:
    return town.coordinator.environment[f"WARDROUND_{name}_PORT"]


def _images_of(environment: dict[str, str]) -> list[str]:
    version = environment.get("WARDROUND_VERSION", "0.1.0")
    return [f"wardround/site-agent:{version}", f"wardround/trainer:{version}-cpu"]


def _move_in(path: Path, document: dict[str, object]) -> None:
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(document, sort_keys=False))
    new.replace(path)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    return folder


def _console() -> Console:
    return Console(file=sys.stdout, width=160)
