"""Generate the committed stubs in ``fl_protocol/wire/v1`` from ``protos/``; ``--check`` compares instead.

The stubs are committed so that nobody needs a compiler to install Wardround; CI runs the check.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("fl_protocol/wire/v1")


def generate_stubs(into: Path) -> dict[str, bytes]:
    """Run the compiler; return the generated files by name."""
    # protoc looks for its plugins on PATH: those beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos" / PACKAGE).glob("*.proto"))
    well_known = resources.files("grpc_tools") / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'protos'}",
            f"-I{well_known}",
            f"--python_out={into}",
            f"--mypy_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_grpc_out={into}",
            *sources,
        ]
    )
    if code != 0:
        message = f"protoc failed with exit code {code}"
        raise SystemExit(message)
    return {path.name: path.read_bytes() for path in sorted((into / PACKAGE).iterdir())}


def main() -> int:
    """Write the stubs, or with ``--check`` say which differ from what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs; exit 1 on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generated = generate_stubs(Path(folder))
    target = ROOT / PACKAGE
    if check:
        committed = {path.name: path.read_bytes() for path in target.glob("*_pb2*")}
        names = sorted(generated.keys() | committed.keys())
        differing = [name for name in names if generated.get(name) != committed.get(name)]
        if differing:
            sys.stderr.write(f"stubs differ from protos/: {', '.join(differing)}; run 'make proto'\n")
        return 1 if differing else 0
    for stale in target.glob("*_pb2*"):
        stale.unlink()
    for name, content in generated.items():
        (target / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
