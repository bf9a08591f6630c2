"""What `make images` asks Docker for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("scripts/build_images.py")


def build_of(script: ModuleType, **changes: object) -> Any:
    made: dict[str, object] = {"version": "0.1.0", "revision": "abc", "epoch": 1_700_000_000, "wheels": None}
    return script.Build(**(made | changes))


def test_command_names_file_tag_and_what_the_labels_say(script: ModuleType) -> None:
    command = script.command_of(script.IMAGES["coordinator"], build_of(script))
    assert command == [
        *("docker", "build", "--file", "deploy/docker/coordinator.Dockerfile", "--tag", "wardround/coordinator:0.1.0"),
        *("--build-arg", "VERSION=0.1.0", "--build-arg", "REVISION=abc", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"),
        ".",
    ]


def test_command_of_the_trainer_hands_the_wheels_over(script: ModuleType) -> None:
    command = script.command_of(
        script.IMAGES["trainer-cpu"],
        build_of(script, wheels=Path("/wheels"), base="python@sha256:1", use_cache=False, epoch=None),
    )
    assert command[-8:] == [
        *("--build-arg", "PYTHON_IMAGE=python@sha256:1", "--target", "cpu", "--build-context", "wheels=/wheels"),
        *("--no-cache", "."),
    ]
    assert not any("SOURCE_DATE_EPOCH" in part for part in command)
    assert "wardround/trainer:0.1.0-cpu" in command


def test_wheels_are_found_where_they_are_named_or_where_pip_looks(script: ModuleType, tmp_path: Path) -> None:
    holds, empty = tmp_path / "holds", tmp_path / "empty"
    holds.mkdir()
    empty.mkdir()
    (holds / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    (empty / "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert script.wheels_folder({"WARDROUND_WHEELS": str(holds)}) == holds
    assert script.wheels_folder({"PIP_FIND_LINKS": f"{empty} {holds}"}) == holds
    assert script.wheels_folder({"WARDROUND_WHEELS": str(empty), "PIP_FIND_LINKS": str(holds)}) is None
    assert script.wheels_folder({}) is None


def test_chosen_leaves_out_what_cannot_be_built_and_says_what_to_do(script: ModuleType) -> None:
    built, left_out = script.chosen([], wheels=None)
    assert built == ["coordinator", "site-agent"]
    assert [line.split(":")[0] for line in left_out] == ["trainer-cpu", "trainer-cuda"]
    assert "WARDROUND_WHEELS=DIR" in left_out[0]
    built, left_out = script.chosen([], wheels=Path("/wheels"))
    assert built == ["coordinator", "site-agent", "trainer-cpu"]
    assert script.chosen(["trainer-cuda"], wheels=None) == (["trainer-cuda"], [])


def test_engine_that_is_not_there_is_said_with_advice(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "is not installed" in script.engine_fault()
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon at unix:///x' >&2\nexit 1\n")
    client.chmod(0o755)
    fault = script.engine_fault()
    assert "point DOCKER_HOST at it" in fault
    assert "Cannot connect to the Docker daemon" in fault
