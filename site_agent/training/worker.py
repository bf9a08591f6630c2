"""One of the processes that do a job together: joins the others, and does what it is handed until it is ended.

Every worker does the whole job, on its own folder: the first one on the job's, each other on a copy of it. How a batch
is dealt out among them stands in ``sharding``. A worker closes no job: it says how the job ended, and who started it
decides. Started by ``workers``.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fl_protocol.spec.tasks import TaskKind
from site_agent.jobs.job_dir import JobDirectoryError, JobFailure, JobKind, read_job
from site_agent.training.closing import outcome_of_job
from site_agent.training.device import release_memory
from site_agent.training.sharding import alone, join_processes
from site_agent.training.shelf import ModelShelf
from site_agent.training.tasks import TASKS
from site_agent.training.workers import Idle, WorkerOptions

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def work(rank: int, end: Connection, options: WorkerOptions) -> None:
    """Join the other workers, say so, and do jobs for as long as somebody hands them out.

    Args:
        rank: from 0; the first worker's folder is the job's.
        end: of this worker's pipe. It gives a folder's path, and takes a ``WorkerAnswer``.
        options: the team's.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s %(levelname)s %(name)s [worker {rank}]: %(message)s"
    )
    # Safety: the workers speak to each other over the loopback, which a container without a network has as well.
    # Untold, they would look for the address that the machine's name has.
    os.environ |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.n_workers))
    join_processes(rank, options.n_workers, store=options.store, uses_gpu=torch.cuda.is_available())
    shelf = ModelShelf()
    end.send(Idle())
    while True:
        job_dir = Path(end.recv())
        is_shared = is_job_shared(job_dir)
        if rank and not is_shared:
            end.send(Idle())
            continue
        with nullcontext() if is_shared else alone():
            outcome = outcome_of_job(job_dir, shelf=shelf, checkpoint_every_s=options.checkpoint_every_s)
        if isinstance(outcome, JobFailure):
            release_memory()
        end.send(outcome)


def is_job_shared(job_dir: Path) -> bool:
    """Whether several processes do this job together; one that cannot be read fails in the first alone."""
    try:
        job = read_job(job_dir)
    except (JobDirectoryError, OSError):
        return False
    task = (job.run_spec or {}).get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    return job.kind is not JobKind.INSPECT and kind in set(TaskKind) and TASKS[TaskKind(kind)].is_shared
