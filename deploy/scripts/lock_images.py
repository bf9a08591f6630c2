"""Pin what each image installs, with the digest of every file: deploy/docker/locks/*.txt.

    python deploy/scripts/lock_images.py --wheels DIR      # DIR holds torch's wheel for CPUs, see trainer.Dockerfile

The versions are those of constraints.txt; uv (extra `dev`) finds what they need. Run it after a change of
pyproject.toml or constraints.txt; tests/unit/deploy says when that was forgotten.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "deploy" / "docker" / "locks"
# The build of torch without NVIDIA's libraries bears a local version, which the index that everybody has does not know.
CPU_TORCH = "torch==2.13.0+cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One file of pins.

    Attributes:
        source: what is asked for: pyproject.toml, or a list beside the lock.
        extras: those of pyproject.toml, if any. What is optional is in the images, off: nothing can be added later.
        cpu_torch: whether torch is the build for CPUs.
    """

    source: Path
    extras: tuple[str, ...] = ()
    cpu_torch: bool = False


LOCK_OF = {
    "build": Lock(source=LOCKS / "build.in"),
    "coordinator": Lock(source=ROOT / "pyproject.toml", extras=("coordinator", "tracing")),
    "demo": Lock(source=LOCKS / "demo.in"),
    "sbom": Lock(source=LOCKS / "sbom.in"),
    "site-agent": Lock(
        source=ROOT / "pyproject.toml", extras=("site-agent", "docker-runner", "kubernetes-runner", "tracing")
    ),
    "trainer-cpu": Lock(source=LOCKS / "trainer.in", cpu_torch=True),
    "trainer-cuda": Lock(source=LOCKS / "trainer-cuda.in"),
}


def command_of(name: str, lock: Lock, *, wheels: Path | None, override: Path) -> list[str]:
    """What makes a lock. ``override`` is a file that holds `CPU_TORCH`."""
    command = ["uv", "pip", "compile", str(lock.source), "--output-file", str(LOCKS / f"{name}.txt")]
    command += ["--constraints", str(ROOT / "constraints.txt"), "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--python-version", "3.11", "--python-platform", "linux", "--quiet"]
    for extra in lock.extras:
        command += ["--extra", extra]
    if lock.cpu_torch:
        command += ["--override", str(override), "--find-links", str(wheels)]
    return command


def main() -> int:
    """Write the locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wheels", type=Path, help="a folder with torch's wheel for CPUs; without it trainer-cpu stays"
    )
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(LOCK_OF)}; all without a name")
    parsed = parser.parse_args()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as override:
        override.write(CPU_TORCH + "\n")
        override.flush()
        for name in parsed.names or LOCK_OF:
            if LOCK_OF[name].cpu_torch and parsed.wheels is None:
                print(f"{name}: left as it is; --wheels DIR names the folder with {CPU_TORCH}", file=sys.stderr)
                continue
            command = command_of(name, LOCK_OF[name], wheels=parsed.wheels, override=Path(override.name))
            subprocess.run(command, check=True)  # noqa: S603 - the command is ours
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
