"""The container engine of the tests: the one that `docker` reaches, else one that a script starts, else none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

SCRIPT_VARIABLE = "WARDROUND_ENGINE_SCRIPT"
_UP_TIMEOUT_S = 900.0


class EngineMissingError(Exception):
    """There is no engine; the sentence says why, and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that answers.

    Attributes:
        environment: what `docker` has to be called with.
        origin: which one it is, for the reader of a test's output.
    """

    environment: Mapping[str, str]
    origin: str


def find_engine(environment: Mapping[str, str] | None = None) -> Engine:
    """The engine that there is, or one that WARDROUND_ENGINE_SCRIPT starts.

    Raises:
        EngineMissingError: neither.
    """
    environment = dict(os.environ if environment is None else environment)
    fault = _fault_of(environment)
    if fault is None:
        return Engine(environment=environment, origin="the engine that docker reaches")
    script = environment.get(SCRIPT_VARIABLE)
    if not script:
        raise EngineMissingError(f"{fault}, and {SCRIPT_VARIABLE} names no script that starts one")
    subprocess.run([script, "up"], check=True, timeout=_UP_TIMEOUT_S, stdin=subprocess.DEVNULL)
    said = subprocess.run(
        ["bash", "-c", 'eval "$("$0" env)" && env -0', script], check=True, capture_output=True, timeout=60
    ).stdout.decode()
    started = dict(line.partition("=")[::2] for line in said.split("\0") if "=" in line)
    fault = _fault_of(started)
    if fault is not None:
        raise EngineMissingError(f"{SCRIPT_VARIABLE} started an engine, and {fault}")
    return Engine(environment=started, origin=f"the engine of {SCRIPT_VARIABLE}")


def _fault_of(environment: Mapping[str, str]) -> str | None:
    docker = shutil.which("docker", path=environment.get("PATH"))
    if docker is None:
        return "docker is not installed"
    for words, missing in (
        (("info", "--format", "{{.ServerVersion}}"), "no engine answers"),
        (("compose", "version", "--short"), "docker compose (version 2) is not there"),
    ):
        done = subprocess.run(
            [docker, *words], env=dict(environment), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            return missing
    return None
