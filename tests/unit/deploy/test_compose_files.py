"""What every compose file has to say, and must never say. The engine's own checks are in tests/containers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
HOSPITAL = ROOT / "deploy" / "compose"
STACK = ROOT / "docker-compose.yml"
WHOLE = (STACK, HOSPITAL / "site.yml")
OVERLAYS = (HOSPITAL / "site.cpu.yml", HOSPITAL / "site.proxy.yml")
TRAINERS = re.compile(r"^trainer")


class _Loader(yaml.SafeLoader):
    """Knows compose's `!reset`, which takes an inherited value away."""


_Loader.add_constructor("!reset", lambda loader, node: None)


def services_of(file: Path) -> dict[str, dict[str, Any]]:
    document = yaml.load(file.read_text(), Loader=_Loader)  # a safe loader with one more tag
    return dict(document["services"])


def each_service() -> list[tuple[str, str, dict[str, Any]]]:
    return [(file.name, name, service) for file in WHOLE for name, service in services_of(file).items()]


@pytest.mark.parametrize(
    ("file", "name", "service"), each_service(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_service_has_nothing_to_gain(file: str, name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user, _, group = service["user"].partition(":")
    assert user == group
    assert int(user) > 0
    for key in ("privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "volumes_from", "extra_hosts"):
        assert key not in service, f"{file}: {name} has {key}"
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= set(limits)
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service.get("network_mode", "none") == "none"
    assert ("network_mode" in service) != ("networks" in service)


@pytest.mark.parametrize("file", [*WHOLE, *OVERLAYS], ids=lambda file: file.name)
def test_no_file_mounts_an_engines_socket_or_a_folder_of_the_system(file: Path) -> None:
    for name, service in services_of(file).items():
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            assert "docker.sock" not in str(volume), name
            assert "/run" not in source, name
            # A named volume, or a folder that the operator names.
            assert re.fullmatch(r"[a-z0-9-]+|\$\{WARDROUND_[A-Z_]+(:[-?].*)?\}", source), (name, source)


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.name)
def test_trainers_have_no_network_and_alone_see_records_read_only(file: Path) -> None:
    services = services_of(file)
    trainers = {name for name in services if TRAINERS.match(name)}
    assert trainers
    for name, service in services.items():
        mounts = [
            (volume["target"], volume.get("read_only") is True)
            if isinstance(volume, dict)
            else (volume.split(":")[1], volume.endswith(":ro"))
            for volume in service.get("volumes", [])
        ]
        at_data = [is_read_only for target, is_read_only in mounts if target == "/data" or target.startswith("/data/")]
        if name in trainers:
            assert service["network_mode"] == "none"
            assert at_data == [True]
            assert [is_read_only for target, is_read_only in mounts if target == "/models"] == [True]
            assert "secrets" not in service
        elif name == "prepare":
            # Makes the records of the demonstration; without a network, too.
            assert service["network_mode"] == "none"
        else:
            assert at_data == [], name


def test_ports_are_published_by_the_coordinator_alone_and_to_this_machine_unless_somebody_says_otherwise() -> None:
    published = {name: service["ports"] for name, service in services_of(STACK).items() if "ports" in service}
    assert set(published) == {"coordinator"}
    assert len(published["coordinator"]) == 5
    for port in published["coordinator"]:
        assert re.match(r"\$\{WARDROUND_(PEOPLE|SITES)_ADDRESS:-127\.0\.0\.1\}:", port), port
    assert not [name for name, service in services_of(HOSPITAL / "site.yml").items() if "ports" in service]


def test_images_are_named_with_a_version() -> None:
    for file, name, service in each_service():
        image = service["image"]
        # What stands behind `:-` is the default.
        resolved = re.sub(r"\$\{[A-Z_]+:-([^{}]*)\}", r"\1", image)
        assert re.search(r":[0-9]+\.[0-9]+", resolved), (file, name, resolved)


def test_secrets_are_files_and_no_value_of_one_stands_in_a_file() -> None:
    for file in (*WHOLE, *OVERLAYS):
        document = yaml.load(file.read_text(), Loader=_Loader)  # a safe loader with one more tag
        assert all(set(secret) == {"file"} for secret in document.get("secrets", {}).values())
        for name, service in document["services"].items():
            for key in service.get("environment", {}):
                is_secret = re.search(r"PASSWORD|TOKEN|SECRET|CODE|CREDENTIALS", key)
                assert not is_secret or key.endswith("_FILE"), (file.name, name, key)
    assert (HOSPITAL / "no-password").read_bytes() == b""


@pytest.mark.parametrize(
    ("example", "files"),
    [
        ("site.env.example", [HOSPITAL / "site.yml", *OVERLAYS]),
        ("coordinator.env.example", [STACK]),
    ],
)
def test_every_variable_is_explained_with_its_default(example: str, files: list[Path]) -> None:
    used: dict[str, str | None] = {}
    for file in files:
        for name, default in re.findall(r"\$\{(WARDROUND_[A-Z0-9_]+)(?::-((?:[^{}]|\{\})*))?", file.read_text()):
            used.setdefault(name, default or None)
    lines = (HOSPITAL / example).read_text().splitlines()
    told: dict[str, str] = {}
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"#?(WARDROUND_[A-Z0-9_]+)=(.*)", line)
        if found:
            told[found[1]] = found[2]
            assert before.startswith("#"), f"{line}: nothing says what it is"
    assert set(told) == set(used)
    for name, default in used.items():
        is_commented = f"#{name}=" in "\n".join(lines)
        if default is not None and is_commented:
            assert told[name] == default or name == "WARDROUND_TRAINER_IMAGE", name
