"""The trainer's program: what agents start, and what study leads and site operators run by hand.

    python -m site_agent.training serve --spool DIR
    python -m site_agent.training serve-spools --jobs DIR
    python -m site_agent.training doctor --live --jobs DIR
    python -m site_agent.training run JOB_DIR
    python -m site_agent.training run JOB_DIR --processes 4
    python -m site_agent.training init-adapter --run-spec run.yaml --base-model DIR --out DIR
    python -m site_agent.training make-timeline-base --vocabulary vocab.txt --out DIR --seed 7
    python -m site_agent.training make-code-list --codes codes.txt --out DIR
    python -m site_agent.training make-vocabulary --release DIR --code-list DIR --out vocab.txt
    python -m site_agent.training inspect --data records.jsonl
    python -m site_agent.training generate --base-model DIR --adapter none --prompt "What is proteinuria?"
    python -m site_agent.training digest-model DIR
    python -m site_agent.training machine --json

Exit codes: 0 done, 1 failed, 2 wrong usage. With --json, one document on the standard output; logs go elsewhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fl_protocol.errors import WardroundError
from fl_protocol.spec.faults import RunSpecFaultsError
from site_agent.training.printing import print_document, print_error
from site_agent.training.spool_commands import add_spool_verbs
from site_agent.training.timeline_commands import add_timeline_verbs

if TYPE_CHECKING:
    from site_agent.jobs.job_dir import JobFailure, JobResult

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Run the named command."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    command: Command = parsed.command
    try:
        return command(parsed)
    except WardroundError as error:
        return tell_error(error, as_json=getattr(parsed, "json", False))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m site_agent.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    verb = verbs.add_parser("serve", help="watch a spool folder and do its jobs until it holds a file 'stop'")
    verb.add_argument("--spool", type=Path, required=True, metavar="DIR")
    add_checkpoint_option(verb)
    add_processes_option(verb)
    verb.set_defaults(command=serve_command)

    verb = verbs.add_parser("run", help="do the one job of a folder")
    verb.add_argument("job_dir", type=Path, metavar="JOB_DIR")
    add_checkpoint_option(verb)
    add_processes_option(verb)
    verb.set_defaults(command=run_command)

    verb = verbs.add_parser("init-adapter", help="make adapter v0 and its layout for a run")
    verb.add_argument("--run-spec", type=Path, required=True, metavar="FILE", help="YAML or JSON")
    verb.add_argument("--base-model", type=Path, required=True, metavar="DIR")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets layout.json and initial.safetensors")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=init_adapter_command)

    add_spool_verbs(verbs, add_job_options)
    add_timeline_verbs(verbs)

    verb = verbs.add_parser("inspect", help="look at every record of a dataset, count it, and name each fault's place")
    verb.add_argument("--data", type=Path, required=True, metavar="FILE")
    verb.add_argument("--format", default="jsonl", help="as it is to be registered (default: jsonl)")
    verb.add_argument("--patient-field", default="patient_id", metavar="NAME")
    verb.add_argument("--schema", metavar="FILE", help="a declared schema as JSON; - reads it from the standard input")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=inspect_command)

    verb = verbs.add_parser("generate", help="answer a question with a base model and an adapter")
    verb.add_argument("--base-model", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--adapter", action="append", metavar="DIR|none", help="a release folder; may be given several times"
    )
    verb.add_argument("--prompt", required=True, metavar="TEXT")
    verb.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    verb.add_argument("--template", choices=("chat", "alpaca"), default="chat", help="as the adapter was trained")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=generate_command)

    verb = verbs.add_parser("digest-model", help="the digest that identifies a base model")
    verb.add_argument("folder", type=Path, metavar="DIR")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=digest_model_command)

    verb = verbs.add_parser("machine", help="say what training would find here: libraries, devices, memory, rights")
    verb.add_argument("--jobs", type=Path, metavar="DIR", help="leave it in this jobs folder, for the agent's doctor")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=machine_command)
    return parser


def add_job_options(verb: argparse.ArgumentParser) -> None:
    """How the jobs of a spool are done."""
    add_checkpoint_option(verb)
    add_processes_option(verb)


def add_checkpoint_option(verb: argparse.ArgumentParser) -> None:
    """How often a job's place is kept."""
    verb.add_argument(
        "--checkpoint-every-s",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="shortest time between two checkpoints of a job, the first after twice that (default: 30)",
    )


def add_processes_option(verb: argparse.ArgumentParser) -> None:
    """How many processes do a job together."""
    verb.add_argument(
        "--processes",
        type=process_count,
        default=1,
        metavar="N|auto",
        help="share each job, and the base's frozen weights, among N processes; auto: one for each GPU (default: 1)",
    )


def process_count(text: str) -> int | None:
    """A number of processes; None for ``auto``."""
    if text == "auto":
        return None
    value = int(text)
    if value < 1:
        message = f"not a number of processes: {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def seconds(text: str) -> float:
    """A duration of zero or more."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        message = f"not a duration: {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def serve_command(arguments: argparse.Namespace) -> int:
    """``serve``."""
    from site_agent.training.progress import TrainerStopped
    from site_agent.training.serve import StopSignal, serve
    from site_agent.training.workers import WorkerDiedError, job_closer

    stop_signal = StopSignal(arguments.spool)
    every_s: float = arguments.checkpoint_every_s
    try:
        # What takes long is done before the trainer says that it is ready.
        with job_closer(processes=arguments.processes, checkpoint_every_s=every_s, should_stop=stop_signal) as close:
            serve(arguments.spool, close, should_stop=stop_signal)
    except TrainerStopped:
        return 0
    except WorkerDiedError as error:
        tell_error(error, as_json=False)
        return error.exit_code
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """``run``."""
    from site_agent.jobs.job_dir import JobFailure
    from site_agent.training.inspecting import close_inspection, is_inspection
    from site_agent.training.workers import WorkerDiedError

    outcome: JobResult | JobFailure
    try:
        if is_inspection(arguments.job_dir):
            outcome = close_inspection(arguments.job_dir)
        else:
            outcome = _close_in_processes(arguments)
    except WorkerDiedError as error:
        tell_error(error, as_json=False)
        return error.exit_code
    if isinstance(outcome, JobFailure):
        print_error(outcome.to_document(), as_json=False)
        return 1
    return 0


def _close_in_processes(arguments: argparse.Namespace) -> JobResult | JobFailure:
    """In this process, with workers of its own, or as one of those that ``torchrun`` started."""
    every_s: float = arguments.checkpoint_every_s
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _close_as_one_of_several(arguments.job_dir, checkpoint_every_s=every_s)
    from site_agent.jobs.job_dir import read_result
    from site_agent.training.progress import never_stops
    from site_agent.training.workers import job_closer

    with job_closer(processes=arguments.processes, checkpoint_every_s=every_s, should_stop=never_stops) as close:
        close(arguments.job_dir, never_stops)
    outcome = read_result(arguments.job_dir)
    if outcome is None:
        message = "the job's folder was taken away"
        raise FileNotFoundError(message)
    return outcome


def _close_as_one_of_several(job_dir: Path, *, checkpoint_every_s: float) -> JobResult | JobFailure:
    """All but the first of the processes do the job in a copy of its folder."""
    import torch

    from site_agent.training.closing import close_job
    from site_agent.training.sharding import shared_job
    from site_agent.training.shelf import ModelShelf

    with shared_job(job_dir, uses_gpu=torch.cuda.is_available()) as own_dir:
        return close_job(own_dir, shelf=ModelShelf(), checkpoint_every_s=checkpoint_every_s)


def init_adapter_command(arguments: argparse.Namespace) -> int:
    """``init-adapter``."""
    from site_agent.training.initial_adapter import make_initial_adapter

    document = make_initial_adapter(arguments.run_spec, base_model=arguments.base_model, out=arguments.out)
    print_document(document, as_json=arguments.json)
    return 0


def inspect_command(arguments: argparse.Namespace) -> int:
    """``inspect``."""
    from site_agent.jobs.record_schema import RecordSchemaFaultsError, schema_from_document
    from site_agent.training.inspecting import look_at_data

    try:
        declared = None if arguments.schema is None else schema_from_document(json.loads(_read_text(arguments.schema)))
    except (OSError, ValueError) as error:
        faults = error.faults if isinstance(error, RecordSchemaFaultsError) else ("the schema is no JSON document",)
        print_error({"code": "schema-invalid", "message": "; ".join(faults), "facts": {}}, as_json=arguments.json)
        return 2
    report, document = look_at_data(
        arguments.data, data_format=arguments.format, patient_field=arguments.patient_field, schema=declared
    )
    if report.n_faults:
        faults_document = document["error"]
        assert isinstance(faults_document, dict)
        print_error(faults_document, as_json=arguments.json)
        return 1
    print_document(document, as_json=arguments.json)
    return 0


def _read_text(name: str) -> str:
    return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")


def generate_command(arguments: argparse.Namespace) -> int:
    """``generate``."""
    from fl_protocol.spec.tasks.instruction_tuning import Template
    from site_agent.training.generate import generate

    adapters = [None if name == "none" else Path(name) for name in arguments.adapter or ["none"]]
    generations = generate(
        arguments.base_model,
        adapters,
        prompt=arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        template=Template(arguments.template),
    )
    if arguments.json:
        answers = [{"adapter": one.adapter, "text": one.text} for one in generations]
        print_document({"prompt": arguments.prompt, "text": answers[-1]["text"], "generations": answers}, as_json=True)
        return 0
    for one in generations:
        sys.stdout.write(f"[{one.adapter or 'base model'}]\n{one.text}\n")
    return 0


def digest_model_command(arguments: argparse.Namespace) -> int:
    """``digest-model``."""
    from site_agent.training.model_files import digest_model_folder

    print_document({"base_model_sha256": digest_model_folder(arguments.folder)}, as_json=arguments.json)
    return 0


def machine_command(arguments: argparse.Namespace) -> int:
    """``machine``."""
    from site_agent.jobs.machine_sight import write_sight
    from site_agent.training.machine import look_around

    sight = look_around()
    if arguments.jobs is not None:
        write_sight(arguments.jobs, sight)
    print_document(sight.to_document(), as_json=arguments.json)
    return 0


def tell_error(error: WardroundError, *, as_json: bool) -> int:
    """Print an error with its advice, and give its exit code."""
    document: dict[str, object] = {
        "code": error.code,
        "message": error.message,
        "advice": getattr(error, "advice", ""),
        "facts": error.facts,
    }
    if isinstance(error, RunSpecFaultsError):
        document["faults"] = [{"path": fault.path, "message": fault.message} for fault in error.faults]
    print_error(document, as_json=as_json)
    return 2 if isinstance(error, RunSpecFaultsError) else 1


if __name__ == "__main__":
    raise SystemExit(main())
