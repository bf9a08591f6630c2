"""``wardround demo``: a whole federation on this machine, from an empty folder to a verified release."""

from __future__ import annotations

import importlib.util
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.text import Text

from wardround.cli.shell import Shell, shell_of
from wardround.demo.federation import DemoSurroundings, run_demo
from wardround.demo.live_table import PlainProgress, Progress, TerminalProgress
from wardround.demo.summary import print_report
from wardround.demo.workspace import DEFAULT_STUDY, Checkout, DemoOptions, Programs
from wardround.errors import UsageInvalidError
from wardround.studies.catalogue import Study, all_studies

_TRAINING_PACKAGES = ("torch", "transformers", "peft")


def demo(  # noqa: PLR0913 # one parameter an option
    context: typer.Context,
    *,
    study: Annotated[
        str, typer.Option("--study", help="A folder of examples/, or a path of your own.")
    ] = DEFAULT_STUDY,
    list_studies: Annotated[
        bool, typer.Option("--list-studies", help="Show the studies that there are, and run none.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="The folder that some studies need; --list-studies says which.")
    ] = None,
    sites: Annotated[
        int | None, typer.Option("--sites", min=3, help="How many hospitals; else as the study says.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="How many rounds; else as the study says.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The run's seed; else as the study says.")] = None,
    work_dir: Annotated[
        Path | None, typer.Option("--work-dir", help="A new folder for everything, which is kept whole.")
    ] = None,
    models_dir: Annotated[Path | None, typer.Option("--models-dir", help="Where converted base models are.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep keys, databases and datasets without --work-dir, too.")
    ] = False,
) -> None:
    """Run a real federation here: one coordinator and several sites, mutual TLS, secure sums, a verified release."""
    shell = shell_of(context)
    if list_studies:
        studies = all_studies(Checkout.of_this_package().examples_dir)
        _show_studies(shell, studies)
        return
    _require_training_packages()
    signal.signal(signal.SIGTERM, _stop_as_by_ctrl_c)
    options = DemoOptions(
        study=study,
        sites=sites,
        rounds=rounds,
        seed=seed,
        data=data,
        work_dir=work_dir,
        models_dir=models_dir,
        keep=keep,
    )
    surroundings = DemoSurroundings(
        checkout=Checkout.of_this_package(),
        programs=Programs(),
        environment=dict(shell.environment),
        progress=_progress_for(shell),
        now=datetime.now(UTC),
    )
    report = run_demo(options, surroundings)
    text = json.dumps(report.to_document(), ensure_ascii=False, indent=2)
    (report.work_dir / "summary.json").write_text(text + "\n", encoding="utf-8")
    if shell.as_json:
        shell.show_document(report.to_document())
    else:
        print_report(report, shell.out, has_live_table=shell.out.is_terminal)


def _progress_for(shell: Shell) -> Progress:
    if shell.as_json:
        return PlainProgress(shell.err)
    return TerminalProgress(shell.out) if shell.out.is_terminal else PlainProgress(shell.out)


def _require_training_packages() -> None:
    missing = [name for name in _TRAINING_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageInvalidError(
            f"the sites of the demonstration train, and {', '.join(missing)} is not installed",
            advice="Run 'make demo', which installs everything, or: pip install 'wardround[training,examples]'",
        )


def _stop_as_by_ctrl_c(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _show_studies(shell: Shell, studies: tuple[Study, ...]) -> None:
    if shell.as_json:
        shell.show_document({"items": [study.to_document() for study in studies]})
        return
    for study in studies:
        document = study.to_document()
        shell.out.print(Text.assemble((study.name, "bold"), f"  {study.description.title}"), soft_wrap=True)
        facts = "{task} on {base_model}; {sites} sites, {rounds} rounds, judged by {metric}".format(**document)
        shell.out.print(Text(f"    {facts} ({study.description.seed_system})"), soft_wrap=True)
        needed = study.description.data.folder
        shell.out.print(Text(f"    data: {study.description.data.source}"), soft_wrap=True)
        if needed is not None:
            shell.out.print(Text(f"    needs --data DIR: {needed.get}"), soft_wrap=True)
