"""The images' Dockerfiles and locks, beside what the project says elsewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ]+) \\$", re.MULTILINE)


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(text: str) -> dict[str, str]:
    return {normal(name): version for name, version in PIN.findall(text)}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


@pytest.mark.parametrize("lock", sorted(DOCKER.glob("locks/*.txt")), ids=lambda path: path.stem)
def test_lock_has_a_digest_for_every_file_and_the_versions_of_the_constraints(lock: Path) -> None:
    text = lock.read_text()
    pinned = pins_of(text)
    assert pinned
    assert len(pinned) == sum(1 for line in text.splitlines() if line and not line.startswith((" ", "#")))
    known = constraints()
    other = {
        name: (version, known[name])
        for name, version in pinned.items()
        if name in known and version.removesuffix("+cpu") != known[name]
    }
    assert other == {}, "run deploy/scripts/lock_images.py"
    for entry in re.split(r"\n(?=\S)", text.strip()):
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("coordinator", ["coordinator", "tracing"]),
        ("site-agent", ["site-agent", "docker-runner", "kubernetes-runner", "tracing"]),
    ],
)
def test_lock_holds_what_the_project_asks_for(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in extras for one in optional[extra])]
    names = {normal(re.split(r"[<>=\[; ]", one)[0]) for one in asked}
    assert names <= pins_of((DOCKER / "locks" / f"{lock}.txt").read_text()).keys(), "run deploy/scripts/lock_images.py"


@pytest.mark.parametrize("lock", ["coordinator", "site-agent"])
def test_lock_of_who_never_trains_has_no_torch(lock: str) -> None:
    assert not {"torch", "transformers", "peft"} & pins_of((DOCKER / "locks" / f"{lock}.txt").read_text()).keys()


@pytest.mark.parametrize("lock", ["trainer-cpu", "trainer-cuda"])
def test_lock_of_the_trainer_has_no_way_to_network_keys_or_database(lock: str) -> None:
    pinned = pins_of((DOCKER / "locks" / f"{lock}.txt").read_text())
    assert not {"grpcio", "cryptography", "sqlalchemy", "fastapi", "uvicorn", "boto3", "pg8000"} & pinned.keys()


@pytest.mark.training
def test_lock_of_the_trainer_has_all_that_its_modules_import() -> None:
    imported = set[str]()
    to_read = list((ROOT / "site_agent" / "training").rglob("*.py"))
    read = set[Path]()
    while to_read:
        path = to_read.pop()
        if path in read or not path.exists():
            continue
        read.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            imported |= {name.split(".")[0] for name in names}
            # Modules of ours are read in their turn; the agent's own, which it does not import, are not.
            ours_named = [
                ROOT / name.replace(".", "/") for name in names if name.startswith(("site_agent", "fl_protocol"))
            ]
            to_read += [path for one in ours_named for path in (one.with_suffix(".py"), one / "__init__.py")]
    imported -= set(sys.stdlib_module_names)
    ours = {"site_agent", "fl_protocol"}
    distributions = packages_distributions()
    assert "torch" in imported
    needed = {normal(distributions[name][0]) for name in imported if name not in ours and name in distributions}
    # What only a GPU's image has.
    optional = {"bitsandbytes"}
    missing = needed - pins_of((DOCKER / "locks" / "trainer-cpu.txt").read_text()).keys() - optional
    assert missing == set()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfile_is_clean_for_hadolint(dockerfile: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not installed (extra dev)")
    done = subprocess.run([linter, "--no-color", dockerfile], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["coordinator", "site-agent", "trainer"])
def test_dockerfile_runs_as_our_user_and_asks_the_program_for_its_health(name: str) -> None:
    text = (DOCKER / f"{name}.Dockerfile").read_text()
    assert "USER 10001:10001" in text
    assert '"doctor", "--live"' in text
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in text


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfile_names_no_frontend_that_would_be_fetched(dockerfile: Path) -> None:
    assert "syntax=" not in dockerfile.read_text()


def test_every_reachable_file_of_the_context_is_ours() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*", "the list says what may be seen, not what may not"


def test_coordinators_state_begins_empty() -> None:
    """A new volume gets what the image has there, and `init` makes a coordinator in an empty folder only."""
    made = re.search(r"rootfs\.sh /opt/wardround/app (.*)", (DOCKER / "coordinator.Dockerfile").read_text())
    assert made is not None
    assert [folder for folder in made[1].split() if folder.startswith("/srv/wardround/")] == []
    assert "/srv/wardround" in made[1].split()
