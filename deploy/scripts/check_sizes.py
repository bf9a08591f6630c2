"""Fail when a module is longer than 600 lines: a room that large is several rooms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARD_LIMIT_LINES = 600
SOFT_LIMIT_LINES = 400
EXEMPT = ("fl_protocol/wire/v1/",)


def tracked_modules() -> list[Path]:
    """The Python files that git tracks, but for generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],  # noqa: S607 - git is found on PATH
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return [Path(name) for name in sorted(set(listed)) if not name.startswith(EXEMPT) and (ROOT / name).exists()]


def main() -> int:
    """Print every module over the soft limit; exit 1 if one is over the hard limit."""
    failed = False
    for module in tracked_modules():
        n_lines = len((ROOT / module).read_bytes().splitlines())
        if n_lines > SOFT_LIMIT_LINES:
            sys.stderr.write(f"{module}: {n_lines} lines (soft limit {SOFT_LIMIT_LINES}, hard {HARD_LIMIT_LINES})\n")
            failed = failed or n_lines > HARD_LIMIT_LINES
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
