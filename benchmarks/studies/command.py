"""``python -m benchmarks studies``: fill a study's table a cell at a time, and write its page.

    python -m benchmarks studies --study NAME [--data DIR] [--seeds N] [--arm ARM] [--table FILE] [--json]
    python -m benchmarks studies --study NAME --run-spec my-run.yaml --table my-table.json
    python -m benchmarks studies --write-docs | --check-docs

A command that is stopped or killed is called again and goes on with the next cell: docs/studies/NAME.json is written
after each. Cells of other settings (data, base model, specification, versions) are refused unless --redo is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import machine_document
from benchmarks.studies.errors import TableElsewhereError
from benchmarks.studies.page import block_of
from benchmarks.studies.pages import study_pages, table_path
from benchmarks.studies.progress import TableProgress
from benchmarks.studies.table_file import only_writer, read_table
from fl_protocol.errors import WardroundError
from wardround.demo.workspace import DEFAULT_STUDY, Checkout
from wardround.errors import CommandError, UsageInvalidError
from wardround.exit_codes import INTERRUPTED, error_document, exit_code_of
from wardround.studies.catalogue import check_data_folder, find_study, with_run_spec
from wardround.studies.description import Arm


def main(arguments: list[str]) -> int:
    """Fill the table; returns the exit code of the three programs' scheme."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.write_docs or parsed.check_docs:
            return _write_docs(is_checking=parsed.check_docs)
        return _fill(parsed)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; what was done is kept.\n")
        return INTERRUPTED
    except WardroundError as error:
        sys.stderr.write(f"Error: {error}\n")
        if isinstance(error, CommandError) and error.advice:
            sys.stderr.write(f"{error.advice}\n")
        if parsed.json:
            print(json.dumps(error_document(error), indent=2))
        return int(exit_code_of(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default=DEFAULT_STUDY, help="a folder of examples/, or a path of your own")
    parser.add_argument("--data", type=Path, help="the folder that some studies need")
    parser.add_argument("--seeds", type=int, help="how many; else as the study says")
    parser.add_argument("--sites", type=int, help="how many; else as the study says")
    parser.add_argument("--arm", action="append", choices=[arm.value for arm in Arm], help="only this arm; repeatable")
    parser.add_argument("--run-spec", type=Path, help="in place of the study's run.yaml; needs --table")
    parser.add_argument("--table", type=Path, help="the document to fill; else docs/studies/NAME.json")
    parser.add_argument("--redo", action="store_true", help="drop cells of other settings and fill them again")
    parser.add_argument("--secure", action="store_true", help="the federated arm through the real secure sum")
    parser.add_argument("--models-dir", type=Path, help="where converted base models are")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the blocks of all pages in docs/studies, fill nothing"
    )
    parser.add_argument("--check-docs", action="store_true", help="exit 1 where a page differs from its table")
    parser.add_argument("--json", action="store_true", help="print the table's document")
    return parser


def _fill(parsed: argparse.Namespace) -> int:
    from benchmarks.studies.arms import plain_sum, secure_sum
    from benchmarks.studies.filling import Filling, fill_table
    from benchmarks.studies.opening import OpeningOptions, study_at_hand

    checkout = Checkout.of_this_package()
    study = find_study(parsed.study, checkout.examples_dir)
    if parsed.run_spec is not None:
        if parsed.table is None:
            message = "the study's own table is that of its own specification"
            raise UsageInvalidError(message, advice="Name another file with --table.")
        study = with_run_spec(study, parsed.run_spec)
    command = study.description.table.command
    if command is not None and parsed.table is None:
        message = f"the table of {study.name} is filled by another command"
        raise TableElsewhereError(message, advice=f"Use: python -m benchmarks {command}; or name a file with --table.")
    check_data_folder(study, parsed.data)
    path = table_path(checkout, study) if parsed.table is None else parsed.table
    shown = TableProgress()
    options = OpeningOptions(sites=parsed.sites, data=parsed.data, models_dir=parsed.models_dir, threads=parsed.threads)
    with only_writer(path):
        table = read_table(path, study=study.name)
        with study_at_hand(study, options=options, shown=shown) as opened:
            plan = study.description.table
            first = opened.spec.local.seed
            filling = Filling(
                path=path,
                run_spec=opened.spec.to_document(),
                sites=opened.sites,
                common=opened.common,
                common_sha256=opened.common_sha256,
                metric=study.description.metric,
                grid=plan.search,
                seeds=range(first, first + (parsed.seeds or plan.seeds)),
                arms=_arms(parsed.arm, plan.arms),
                without=[opened.sites[number - 1].name for number in plan.without if number <= len(opened.sites)],
                add_up=secure_sum if parsed.secure else plain_sum,
                is_secure=parsed.secure,
                is_redoing=parsed.redo,
                machine=machine_document(),
            )
            n_done = fill_table(filling, table, opened.workshop, shown)
    shown.say(f"{n_done} cells filled, {len(table.cells) - n_done} were there; {path}")
    if parsed.json:
        print(json.dumps(table.to_document(), indent=1, ensure_ascii=False))
    else:
        print(block_of(table, study.description.metric))
    return 0


def _arms(asked: Sequence[str] | None, planned: Sequence[Arm]) -> tuple[Arm, ...]:
    return tuple(arm for arm in Arm if arm in planned and (asked is None or arm.value in asked))


def _write_docs(*, is_checking: bool) -> int:
    pages = study_pages(Checkout.of_this_package())
    differing = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in differing:
        if is_checking:
            sys.stderr.write(f"{path} differs from its table; run 'make docs'\n")
        else:
            path.write_text(pages[path], encoding="utf-8")
            sys.stderr.write(f"{path} is written\n")
    return 1 if differing and is_checking else 0
