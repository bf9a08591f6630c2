"""What a program can do inside a running container, found out by one that tries.

The program below is run by the container's own Python; nothing is installed for it.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

from tests.containers.support.stack import Stack

_PROGRAM = textwrap.dedent(
    """
    import importlib.util, json, os, socket, stat, sys

    asked = json.loads(sys.argv[1])
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    found = {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "capabilities": {key: int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privileges": status["NoNewPrivs"].strip() == "1",
        "seccomp": int(status["Seccomp"]),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "routes": len(open("/proc/net/route").read().splitlines()) - 1,
        "modules": [name for name in asked["modules"] if importlib.util.find_spec(name) is not None],
        "reached": {}, "resolved": {}, "read_only": [], "written": [], "records": [], "sockets": [], "secrets": [],
    }
    for host, port in asked["addresses"]:
        try:
            socket.create_connection((host, port), timeout=2).close()
            found["reached"][host] = port
        except OSError:
            pass
    for name in asked["names"]:
        try:
            found["resolved"][name] = socket.gethostbyname(name)
        except OSError:
            pass
    for folder in asked["folders"]:
        if not os.path.isdir(folder):
            continue
        try:
            path = os.path.join(folder, ".wardround-probe")
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.unlink(path)
            found["written"].append(folder)
        except OSError as error:
            # EROFS: not a matter of rights, which somebody may gain.
            if error.errno == 30:
                found["read_only"].append(folder)
    for top, folders, files in os.walk("/"):
        if top == "/":
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev")]
        for name in files:
            path = os.path.join(top, name)
            try:
                kind = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(kind):
                found["sockets"].append(path)
            if name.endswith(asked["record_endings"]) if isinstance(asked["record_endings"], str) else \
                    any(name.endswith(ending) for ending in asked["record_endings"]):
                found["records"].append(path)
            if name.endswith((".key.pem", "signing.pem", "admin.token")):
                found["secrets"].append(path)
    json.dump(found, sys.stdout)
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """What is tried.

    Attributes:
        system_folders: in which nobody may write.
        addresses: of machines that would answer if there were a way: public resolvers, a metadata service, the engine's
            own bridge.
        names: that only a resolver outside could resolve.
    """

    system_folders: tuple[str, ...] = ("/", "/etc", "/opt", "/usr", "/var", "/home")
    addresses: tuple[tuple[str, int], ...] = (
        ("1.1.1.1", 443),
        ("8.8.8.8", 53),
        ("169.254.169.254", 80),
        ("172.17.0.1", 22),
    )
    names: tuple[str, ...] = ("example.org", "example.com")
    modules: tuple[str, ...] = ("torch", "transformers", "peft")
    record_endings: tuple[str, ...] = (".jsonl", ".csv", ".parquet")


PROBE = Attempts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was found."""

    uid: int
    gid: int
    capabilities: dict[str, int]
    no_new_privileges: bool
    seccomp: int
    interfaces: tuple[str, ...]
    routes: int
    reached: dict[str, int]
    resolved: dict[str, str]
    read_only: tuple[str, ...]
    unexpected_writable: tuple[str, ...]
    modules: tuple[str, ...]
    records: tuple[str, ...]
    sockets: tuple[str, ...]
    secrets: tuple[str, ...]


def probed(stack: Stack, service: str, *, writable: tuple[str, ...]) -> Probe:
    """Try everything inside a service's container; ``writable`` are the folders in which it may write."""
    folders = (*PROBE.system_folders, "/data", "/models", "/srv/secrets", "/etc/wardround", *writable)
    asked = {
        "addresses": PROBE.addresses,
        "names": PROBE.names,
        "modules": PROBE.modules,
        "folders": folders,
        "record_endings": list(PROBE.record_endings),
    }
    done = stack.run_in(service, "python", "-c", _PROGRAM, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    written = found.pop("written")
    # Where it should be able to write it can, so that the probe itself is known to work.
    assert [folder for folder in writable if folder not in written] == []
    return Probe(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()},
        unexpected_writable=tuple(folder for folder in written if folder not in writable),
    )
