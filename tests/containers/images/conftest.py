"""A Docker engine, as `docker` reaches it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.tools import cannot_run

ROOT = Path(__file__).resolve().parents[3]

NAMES = ["coordinator", "site-agent", "trainer-cpu"]

Docker = Callable[..., str]


def load_script(path: str) -> ModuleType:
    """A program of deploy/ as a module."""
    name = f"deploy_script_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "deploy" / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def build_images() -> ModuleType:
    return load_script("scripts/build_images.py")


@pytest.fixture(scope="session")
def images(docker: Docker, build_images: ModuleType) -> dict[str, str]:
    """The tag of each image that `make images` built; the trainer is left out where it could not be built."""
    build = build_images.build_now(wheels=None, use_cache=True, base=None)
    version = os.environ.get("WARDROUND_IMAGE_TAG", build.version)
    tags = {name: build_images.tag_of(build_images.IMAGES[name], version) for name in NAMES}
    there = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    for name in ("coordinator", "site-agent"):
        if tags[name] not in there:
            cannot_run(f"needs the image {tags[name]}: make images")
    return {name: tag for name, tag in tags.items() if tag in there}


@pytest.fixture(scope="session")
def docker(build_images: ModuleType) -> Docker:
    """Run `docker ARGUMENTS...`; what it printed. Without an engine the tests are passed over, and say why."""
    fault = build_images.engine_fault()
    if fault is not None:
        # Not a failure in CI either: whether an engine can be had is the machine's matter, and its tests are counted.
        pytest.skip(fault)

    def run(*arguments: str) -> str:
        done = subprocess.run(["docker", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    return run
