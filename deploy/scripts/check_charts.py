"""Look at both charts as a cluster would, with both current Helms, and pack them.

Lint, render each set of values of ``helm/*/ci``, hold what comes out against Kubernetes' own schemas, and against
checkov's rules but for the exceptions in ``deploy/checkov.yaml``. What is rendered and packed lies in ``build/charts``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from get_helm import CARRIED, HelmMissingError, fetch_helm, find_helm

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ("coordinator", "site-agent")
BUILD = ROOT / "build" / "charts"
# The newest that the validator knows, and one that clusters still run.
KUBERNETES_VERSIONS = ("1.37.0", "1.30.0")


class ChartCheckError(Exception):
    """A program was not content; what it said is in the sentence."""


def run(*command: str | Path) -> str:
    """What a program prints. Raises ChartCheckError where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT)  # noqa: S603 - fixed programs
    if done.returncode != 0:
        raise ChartCheckError(f"{' '.join(words[:4])} ...\n{done.stdout}{done.stderr}")
    return done.stdout


def value_sets(chart: str) -> Iterator[Path]:
    """The sets of values that a chart is rendered with."""
    yield from sorted((ROOT / "helm" / chart / "ci").glob("*-values.yaml"))


def render(helm: Path, major: str) -> list[Path]:
    """Lint every chart and render every set of values; returns the files."""
    written: list[Path] = []
    for chart in CHARTS:
        for values in value_sets(chart):
            run(helm, "lint", "--strict", "--quiet", f"helm/{chart}", "--values", values)
            text = run(helm, "template", "wr", f"helm/{chart}", "--namespace", "wardround", "--values", values)
            file = BUILD / "rendered" / f"helm-{major}" / f"{chart}-{values.name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            written.append(file)
    return written


def judge(files: Sequence[Path], tools: Path) -> None:
    """Hold what was rendered against Kubernetes' schemas and the two linters. Raises ChartCheckError."""
    for version in KUBERNETES_VERSIONS:
        run(tools / "kubernetes-validate", "--strict", "--quiet", "--no-warn", "-k", version, *files)
    run(tools / "yamllint", "--strict", "-c", "deploy/yamllint.yaml", *files, *sorted((ROOT / "helm").glob("*/*.yaml")))
    # Once: the two Helms differ in blank lines.
    run(tools / "checkov", "--config-file", "deploy/checkov.yaml", "--directory", files[0].parent)


def main() -> int:
    """Say what was looked at; 1 and what the program said where one is not content."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="where kubernetes-validate, yamllint and checkov are")
    tools = parser.parse_args().tools.absolute()
    shutil.rmtree(BUILD, ignore_errors=True)
    try:
        files: list[Path] = []
        for major in sorted(CARRIED):
            helm = find_helm(major) or fetch_helm(major)
            files += render(helm, major)
            print(f"Helm {major}: linted, {len(files)} sets of values rendered so far")
        judge(files, tools)
        print(f"valid for Kubernetes {' and '.join(KUBERNETES_VERSIONS)}; yamllint and checkov have nothing to say")
        helm = find_helm("3") or fetch_helm("3")
        for chart in CHARTS:
            print(run(helm, "package", f"helm/{chart}", "--destination", BUILD).strip())
    except (ChartCheckError, HelmMissingError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
