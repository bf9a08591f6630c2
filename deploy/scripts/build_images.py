"""Build the images, on the Docker engine that `docker` reaches: `make images`.

    python deploy/scripts/build_images.py                      # coordinator, site agent, trainer for CPUs
    WARDROUND_WHEELS=DIR python deploy/scripts/build_images.py # where DIR holds torch's wheel for CPUs
    python deploy/scripts/build_images.py trainer-cuda         # some 3 GB of downloads, so only where it is named

Each image's list of contents (CycloneDX) is written beside, to `.wardround/images/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SBOM = "/usr/share/wardround/sbom.cdx.json"
OUT = ROOT / ".wardround" / "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of ours.

    Attributes:
        repository: its name without a tag.
        dockerfile: the file's name below deploy/docker.
        suffix: what its tag has behind the version.
        target: the stage that is built; the last one where None.
        needs_wheels: whether torch's wheel for CPUs has to be at hand.
        is_large: whether it is built only where it is named.
    """

    repository: str
    dockerfile: str
    suffix: str = ""
    target: str | None = None
    needs_wheels: bool = False
    is_large: bool = False


IMAGES = {
    "coordinator": Image(repository="wardround/coordinator", dockerfile="coordinator.Dockerfile"),
    "site-agent": Image(repository="wardround/site-agent", dockerfile="site-agent.Dockerfile"),
    "trainer-cpu": Image(
        repository="wardround/trainer",
        dockerfile="trainer.Dockerfile",
        suffix="-cpu",
        target="cpu",
        needs_wheels=True,
    ),
    "trainer-cuda": Image(
        repository="wardround/trainer",
        dockerfile="trainer.Dockerfile",
        suffix="-cuda",
        target="cuda",
        is_large=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What is the same for every image of one call.

    Attributes:
        version: the project's, and the tag.
        revision: the commit, or `unknown`.
        epoch: the commit's time in seconds since 1970, which the images bear as theirs; None leaves the clock's.
        wheels: a folder with torch's wheel for CPUs, if there is one.
        base: another base image, such as one named by its digest.
        use_cache: whether layers of earlier builds count.
    """

    version: str
    revision: str
    epoch: int | None
    wheels: Path | None
    base: str | None = None
    use_cache: bool = True


def tag_of(image: Image, version: str) -> str:
    """The name that an image gets."""
    return f"{image.repository}:{version}{image.suffix}"


def command_of(image: Image, build: Build, *, tag: str | None = None) -> list[str]:
    """The call of `docker build` that makes an image."""
    command = ["docker", "build", "--file", f"deploy/docker/{image.dockerfile}"]
    command += ["--tag", tag or tag_of(image, build.version)]
    command += ["--build-arg", f"VERSION={build.version}", "--build-arg", f"REVISION={build.revision}"]
    if build.epoch is not None:
        command += ["--build-arg", f"SOURCE_DATE_EPOCH={build.epoch}"]
    if build.base is not None:
        command += ["--build-arg", f"PYTHON_IMAGE={build.base}"]
    if image.target is not None:
        command += ["--target", image.target]
    if image.needs_wheels and build.wheels is not None:
        command += ["--build-context", f"wheels={build.wheels}"]
    if not build.use_cache:
        command += ["--no-cache"]
    return [*command, "."]


def wheels_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder with torch's wheel: WARDROUND_WHEELS, or one of those where pip is told to look."""
    named = environment.get("WARDROUND_WHEELS")
    folders = [named] if named else environment.get("PIP_FIND_LINKS", "").split()
    for folder in folders:
        if any(Path(folder).glob("torch-*+cpu-*.whl")):
            return Path(folder).resolve()
    return None


def chosen(names: Sequence[str], *, wheels: Path | None) -> tuple[list[str], list[str]]:
    """Which images are built, and a sentence for each that is left out."""
    if names:
        return list(names), []
    built, left_out = [], []
    for name, image in IMAGES.items():
        if image.needs_wheels and wheels is None:
            left_out.append(
                f"{name}: left out, since torch's wheel for CPUs is not at hand; say WARDROUND_WHEELS=DIR, "
                "where DIR holds the wheel that deploy/docker/locks/trainer-cpu.txt names"
            )
        elif image.is_large:
            left_out.append(f"{name}: left out, since it downloads some 3 GB; name it: build_images.py {name}")
        else:
            built.append(name)
    return built, left_out


def _output(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return done.stdout.strip()


def engine_fault() -> str | None:
    """What is wrong with the engine, and what to do; None where it answers."""
    try:
        _output(["docker", "version", "--format", "{{.Server.Version}}"])
        _output(["docker", "buildx", "version"])
    except FileNotFoundError:
        return "the program `docker` is not installed: install Docker (or its client, and set DOCKER_HOST), with buildx"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        return (
            "no Docker engine with buildx answers: start one, or point DOCKER_HOST at it. "
            f"`{' '.join(error.cmd[:3])}` says: {said[-1] if said else 'nothing'}"
        )
    return None


def write_sbom(tag: str, to: Path) -> None:
    """Copy an image's list of contents out of it."""
    container = _output(["docker", "create", tag])
    try:
        _output(["docker", "cp", f"{container}:{SBOM}", str(to)])
    finally:
        _output(["docker", "rm", container])


def build_now(*, wheels: Path | None, use_cache: bool, base: str | None) -> Build:
    """What this checkout builds."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    try:
        revision, epoch = _output(["git", "log", "-1", "--format=%H %ct"]).split()
    except (FileNotFoundError, subprocess.CalledProcessError):  # an unpacked archive has no history
        return Build(version=version, revision="unknown", epoch=None, wheels=wheels, base=base, use_cache=use_cache)
    return Build(version=version, revision=revision, epoch=int(epoch), wheels=wheels, base=base, use_cache=use_cache)


def main() -> int:
    """Build, and tell each image's name, size and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="IMAGE", help=f"which of {', '.join(IMAGES)}")
    parser.add_argument("--base", help="the base image, such as python:3.11-slim-bookworm@sha256:...")
    parser.add_argument("--no-cache", action="store_true", help="build every layer again")
    parsed = parser.parse_args()
    unknown = [name for name in parsed.names if name not in IMAGES]
    if unknown:
        parser.error(f"no image is named {', '.join(unknown)}; there are {', '.join(IMAGES)}")
    fault = engine_fault()
    if fault is not None:
        print(fault, file=sys.stderr)
        return 1
    wheels = wheels_folder(os.environ)
    build = build_now(wheels=wheels, use_cache=not parsed.no_cache, base=parsed.base)
    built, left_out = chosen(parsed.names, wheels=wheels)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in built:
        began = time.monotonic()
        tag = tag_of(IMAGES[name], build.version)
        if subprocess.run(command_of(IMAGES[name], build), cwd=ROOT, check=False).returncode:  # noqa: S603 - ours
            print(f"{tag}: the build failed; what it said stands above", file=sys.stderr)
            return 1
        write_sbom(tag, OUT / f"{name}.cdx.json")
        size = int(_output(["docker", "image", "inspect", "--format", "{{.Size}}", tag])) / 1e6
        print(f"{tag}: {size:.0f} MB, {time.monotonic() - began:.0f} s, contents in .wardround/images/{name}.cdx.json")
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
