"""What a system test needs of its machine: a tool that is missing is said by name, and fails CI, which installs it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

_PLACES = (str(Path(sys.executable).parent), "/usr/lib/postgresql/15/bin", "/usr/sbin", "/sbin")


def tool(name: str) -> Path:
    """Where a program lies; the test is skipped where it is missing, and fails where CI should have installed it."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_PLACES))
    if found is None:
        cannot_run(f"needs {name}, which is not on this machine; .ci/run says how to install it")
    return Path(found)


def need_root() -> None:
    """Skip, or fail in CI, where the test cannot make network namespaces."""
    if os.geteuid() != 0:
        cannot_run("needs root, to make network namespaces")


def cannot_run(reason: str) -> NoReturn:
    """End the test: skipped with its reason on a person's machine, failed in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
