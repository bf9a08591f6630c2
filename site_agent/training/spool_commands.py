"""The verbs of a trainer that an agent did not start: ``serve-spools``, its ``do-jobs``, and ``doctor``."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from site_agent.jobs.spool_files import HEARTBEAT_FILE, STALE_AFTER_S, is_trainer_alive
from site_agent.training.printing import print_document, print_error
from site_agent.training.progress import TrainerStopped

_log = logging.getLogger(__name__)


def add_spool_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    add_options: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Declare them; ``add_options`` adds how a job is done."""
    verb = verbs.add_parser("serve-spools", help="do the jobs of every run below a jobs folder until SIGTERM")
    verb.add_argument("--jobs", type=Path, required=True, metavar="DIR")
    add_options(verb)
    verb.set_defaults(command=serve_spools_command)

    verb = verbs.add_parser("do-jobs", help="(serve-spools starts it) do the jobs that the standard input names")
    verb.add_argument("--answers", type=int, required=True, metavar="N", help="the descriptor to answer by")
    add_options(verb)
    verb.set_defaults(command=do_jobs_command)

    verb = verbs.add_parser("doctor", help="say whether the trainer that serves a jobs folder is alive")
    verb.add_argument("--live", action="store_true", required=True, help="look at the running program only")
    verb.add_argument("--jobs", type=Path, required=True, metavar="DIR")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(command=doctor_command)


def serve_spools_command(arguments: argparse.Namespace) -> int:
    """``serve-spools``."""
    from site_agent.training.spools import lanes_of, serve_spools

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    jobs: Path = arguments.jobs
    if not jobs.is_dir() or not os.access(jobs, os.W_OK | os.X_OK):
        sys.stderr.write(
            f"The jobs folder {jobs} is not there, or not writable for uid {os.getuid()}: mount the agent's jobs "
            "volume there, owned by the user that both containers run as.\n"
        )
        return 1
    _log.info("serving the spools of a jobs folder")
    threading.Thread(target=tell_of_machine, args=(jobs,), daemon=True).start()
    processes = "auto" if arguments.processes is None else str(arguments.processes)
    options = ("--checkpoint-every-s", str(arguments.checkpoint_every_s), "--processes", processes)
    serve_spools(jobs, lanes_of(jobs, options=options), should_stop=stopped.is_set)
    return 0


def tell_of_machine(jobs: Path) -> None:
    """Leave word of this machine for the agent's ``doctor``; in a process of its own, which loads torch and ends."""
    command = [sys.executable, "-m", "site_agent.training", "machine", "--jobs", str(jobs)]
    try:
        # Safety: no shell, and every argument is one word of a fixed command line.
        subprocess.run(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True, timeout=600)  # noqa: S603 - this installation's own program
    except (OSError, subprocess.SubprocessError) as error:
        # Only ``doctor`` misses it.
        _log.warning("no word of this machine was left: %s", type(error).__name__)


def do_jobs_command(arguments: argparse.Namespace) -> int:
    """``do-jobs``: a job folder a line on the standard input, a line of answer for each."""
    from site_agent.training.workers import WorkerDiedError

    named: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
    ended = threading.Event()

    def listen() -> None:
        # The pipe closes when the overseer ends, however that happens.
        for line in sys.stdin.buffer:
            named.put(Path(os.fsdecode(line.removesuffix(b"\n"))))
        ended.set()
        named.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        with ExitStack() as kept:
            close = _job_closer(arguments, kept, ended.is_set)
            while (job_dir := named.get()) is not None:
                try:
                    close(job_dir)
                except FileNotFoundError:
                    # Deleted by the agent under the job, perhaps at its last line: nobody waits for it any more.
                    if job_dir.exists():
                        raise
                os.write(arguments.answers, b"done\n")
    except TrainerStopped:
        return 0
    except WorkerDiedError as error:
        print_error({"code": error.code, "message": error.message, "facts": error.facts}, as_json=False)
        return error.exit_code
    return 0


def _job_closer(
    arguments: argparse.Namespace, kept: ExitStack, should_stop: Callable[[], bool]
) -> Callable[[Path], None]:
    """Does a job of any kind. The numeric libraries are loaded for the first one that needs them, and then stay."""
    from site_agent.training.inspecting import close_inspection, is_inspection
    from site_agent.training.workers import job_closer

    @cache
    def closer() -> Callable[[Path, Callable[[], bool]], None]:
        every_s: float = arguments.checkpoint_every_s
        made = job_closer(processes=arguments.processes, checkpoint_every_s=every_s, should_stop=should_stop)
        return kept.enter_context(made)

    def close(job_dir: Path) -> None:
        if is_inspection(job_dir):
            close_inspection(job_dir)
        else:
            closer()(job_dir, should_stop)

    return close


def doctor_command(arguments: argparse.Namespace) -> int:
    """``doctor --live``: 0 where the heartbeat is young."""
    if is_trainer_alive(arguments.jobs):
        print_document({"trainer": "alive"}, as_json=arguments.json)
        return 0
    sys.stderr.write(
        f"{HEARTBEAT_FILE} in {arguments.jobs} is missing or older than {STALE_AFTER_S:.0f} s: "
        "no trainer serves this jobs folder; see the trainer's log.\n"
    )
    return 1
