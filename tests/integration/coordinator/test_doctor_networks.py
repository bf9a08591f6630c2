# ruff: noqa: ANN001, ANN201 # the types of fixtures live in conftest.py, which test folders cannot import
"""``wardround-site doctor`` on a machine of its own: a network namespace, real squid, packet filters, a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.namespace import Namespace, call, network_namespace
from tests.support.proxies import squid
from tests.support.tools import need_root

pytestmark = pytest.mark.system

CREDENTIALS = "st-mary:s3:cr@t/%"
Results = Mapping[str, Mapping[str, object]]


@pytest.fixture(scope="module")
def served(make_coordinator, tmp_path_factory: pytest.TempPathFactory):
    """A coordinator that listens on every address of this machine."""
    need_root()
    everywhere = {f"WARDROUND_{section}__HOST": "0.0.0.0" for section in ("GATEWAY", "ENROLMENT")}
    made = make_coordinator(directory=tmp_path_factory.mktemp("served") / "state", environment=everywhere)
    made.init()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def hospital() -> Iterator[Namespace]:
    with network_namespace() as made:
        yield made


def port_of(served, listener: str) -> int:
    return int(served.addresses()[listener].rpartition(":")[2])


def ask(hospital: Namespace, state: Path, *options: str, **environment: str) -> Results:
    """The doctor of a machine in the namespace; what it looks at beside the network is not asked for here."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [*hospital.prefix, sys.executable, "-m", "site_agent", "--json", "--state-dir", str(state), "doctor", *options],
        env={**kept, "WARDROUND_RUNNER__KIND": "spool", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    document = json.loads(done.stdout)
    assert (done.returncode == 0) is document["ok"], done.stderr
    told: dict[str, Mapping[str, object]] = {}
    for check in document["checks"]:
        listener = check["facts"].get("listener")
        told[f"{check['name']} of {listener}" if listener else check["name"]] = check
        assert check["advice"] or check["health"] in {"ok", "note"}
    return told


def test_open_and_refused_and_dropped_ports_are_told_apart(served, hospital: Namespace, tmp_path: Path) -> None:
    host = hospital.outside_address
    gateway, enrolment = f"{host}:{port_of(served, 'gateway')}", f"{host}:{port_of(served, 'enrolment')}"
    told = ask(hospital, tmp_path, "--coordinator", gateway, "--enrolment", enrolment)
    assert told["connection of gateway"]["code"] == "connection-open"
    assert told["http/2 of enrolment"]["code"] == "http2-good"
    assert told["coordinator"]["code"] == "coordinator-not-asked"
    hospital.run("iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", gateway.rpartition(":")[2], "-j", "DROP")
    told = ask(hospital, tmp_path, "--coordinator", gateway, "--enrolment", f"{host}:1")
    assert told["connection of gateway"]["code"] == "timed-out"
    assert told["connection of enrolment"]["code"] == "refused"
    assert "--firewall" in str(told["connection of gateway"]["advice"])
    assert ask(hospital, tmp_path, "--enrolment", "203.0.113.7:9")["connection of enrolment"]["code"] == "unreachable"


def test_dns_server_that_is_silent_is_told_apart_from_a_name_that_is_not(hospital: Namespace, tmp_path: Path) -> None:
    # What lies in this folder is mounted over /etc by `ip netns exec`.
    folder = Path("/etc/netns") / hospital.name
    folder.mkdir(parents=True)
    try:
        (folder / "resolv.conf").write_text(f"nameserver {hospital.outside_address}\noptions timeout:1 attempts:1\n")
        hospital.run("iptables", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
        told = ask(hospital, tmp_path, "--enrolment", "coordinator.example.org:8445")
    finally:
        (folder / "resolv.conf").unlink()
        folder.rmdir()
    assert told["dns"]["code"] == "dns-silent"
    assert "resolv.conf" in str(told["dns"]["advice"])


def test_squid_is_the_way_out_and_each_of_its_refusals_is_told(served, hospital: Namespace, tmp_path: Path) -> None:
    enrolment, gateway = port_of(served, "enrolment"), port_of(served, "gateway")
    # The coordinator is at an address that the hospital has no route to: the proxy is the only way.
    target = ["--enrolment", f"127.0.0.1:{enrolment}"]
    here = hospital.outside_address
    state = tmp_path / "state"
    file = tmp_path / "credentials"
    file.touch(mode=0o600)
    with (
        squid(tmp_path / "open", connect_ports=(enrolment, 1), host=here) as proxy,
        squid(tmp_path / "closed", connect_ports=(enrolment,), credentials=CREDENTIALS, host=here) as guarded,
    ):
        told = ask(hospital, state, *target, "--proxy", proxy.url)
        assert told["route"]["code"] == "route-proxy"
        assert "the command line" in str(told["route"]["message"])
        assert told["connection of enrolment"]["code"] == "connection-open"
        assert told["http/2 of enrolment"]["code"] == "http2-good"
        told = ask(hospital, state, *target, https_proxy=proxy.url)
        assert "https_proxy" in str(told["route"]["message"])
        assert told["coordinator"]["code"] == "coordinator-not-asked"
        told = ask(hospital, state, "--enrolment", f"127.0.0.1:{gateway}", "--proxy", proxy.url)
        assert told["connection of enrolment"]["code"] == "proxy-forbids"
        told = ask(hospital, state, "--enrolment", "127.0.0.1:1", "--proxy", proxy.url)
        assert told["connection of enrolment"]["code"] == "proxy-failed"
        assert "ERR_CONNECT_FAIL" in str(told["connection of enrolment"]["message"])

        told = ask(hospital, state, *target, "--proxy", guarded.url)
        assert told["connection of enrolment"]["code"] == "proxy-credentials"
        for password, code in (
            ("wrong", "proxy-credentials-refused"),
            (CREDENTIALS.partition(":")[2], "connection-open"),
        ):
            file.write_text(f"st-mary:{password}\n")
            told = ask(hospital, state, *target, "--proxy", guarded.url, "--proxy-credentials-file", str(file))
            assert told["connection of enrolment"]["code"] == code
            assert password not in str(told)
        hospital.run("iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", str(guarded.port), "-j", "DROP")
        told = ask(hospital, state, *target, "--proxy", guarded.url)
        assert told["connection of enrolment"]["code"] == "proxy-timed-out"


def test_disk_that_is_full_is_told(hospital: Namespace, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(state))
    try:
        told = ask(hospital, state)
    finally:
        call("umount", str(state))
    assert told["disk"]["code"] == "disk-full"
    assert int(str(told["disk"]["facts"]["free_bytes"])) <= 8 << 20  # type: ignore[index]
