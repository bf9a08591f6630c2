"""One job on several processes: the frozen base in shards, the adapter whole on each, every batch dealt out.

Each process holds a part of the weights of every layer (FSDP), and has them together only while that layer computes.
The adapter is small and stays whole, so that whatever trains, reads, writes or checkpoints it does not know of this
room: its gradients are added up over the processes as they arise, and each process then takes the same step.

All processes do the same job on the same records in the same order; only the first one's folder is the job's. They are
the workers of a trainer that serves a spool (``workers``), or were started for one job by ``torchrun`` or ``accelerate
launch``. Knows no task.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from site_agent.training.collate import Example
from site_agent.training.completion_loss import CompletionLoss
from site_agent.training.errors import BaseModelInvalidError
from site_agent.training.task_half import LossSum

_WAIT_FOR_OTHERS = timedelta(days=1)
"""How long one process waits for another. A process that dies is noticed at once by whoever started it."""

_is_alone: ContextVar[bool] = ContextVar("is_alone", default=False)


def n_processes() -> int:
    """How many processes share the job; 1 where nobody started more, or where this one does it ``alone``."""
    return distributed.get_world_size() if distributed.is_initialized() and not _is_alone.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Do what follows in this process alone, though others have joined it."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def join_processes(rank: int, n_joined: int, *, store: Path, uses_gpu: bool) -> None:
    """Join the other processes of this machine: with gloo, and with NCCL where each has a GPU of its own.

    They find each other through a file, so that no port is opened for it.
    """
    if uses_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if uses_gpu else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=n_joined,
        timeout=_WAIT_FOR_OTHERS,
    )


@contextmanager
def shared_job(job_dir: Path, *, uses_gpu: bool) -> Iterator[Path]:
    """Join the processes that ``torchrun`` started, and give this one's job folder: a copy in all but the first.

    A copy is made before the first process begins, with the checkpoint of an earlier trainer in it, so that all go on
    from the same place; what is written into it is thrown away. Safety: it lies in a folder of this user alone.
    """
    state = PartialState(cpu=not uses_gpu)
    try:
        if state.is_main_process:
            state.wait_for_everyone()
            yield job_dir
            return
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / job_dir.name
            shutil.copytree(job_dir, copied)
            state.wait_for_everyone()
            yield copied
    finally:
        state.destroy_process_group()


def shard_layers(base: torch.nn.Module, trained: Iterable[torch.nn.Parameter]) -> None:
    """Share the frozen weights of each layer among the processes; what is trained stays whole, as does all else.

    Raises:
        BaseModelInvalidError: the architecture does not say what its layers are.
    """
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BaseModelInvalidError("this architecture does not say what its layers are, so that none can be shared")
    whole = set(trained)
    mesh = init_device_mesh(next(base.parameters()).device.type, (n_processes(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole.intersection(layer.parameters()))


class SharedCompletionLoss:
    """The loss of a batch of which each process computes a part.

    Its value is the whole batch's in every process. Its gradient in a process is that of the process's own part, and
    the hooks on the trained parameters make it the whole batch's before it is accumulated.
    """

    def __init__(self, own: CompletionLoss, trained: Iterable[torch.nn.Parameter]) -> None:
        """Keep what computes a part, and add up the gradients of what is trained from now on."""
        self._own = own
        self._rank = distributed.get_rank()
        for parameter in trained:
            parameter.register_hook(_added_up)

    def __call__(self, examples: Sequence[Example]) -> LossSum:
        """See ``CompletionLoss``."""
        return LossSum(loss=self.each(examples).sum(), n_units=sum(example.n_units for example in examples))

    def each(self, examples: Sequence[Example]) -> torch.Tensor:
        """See ``CompletionLoss``."""
        places = list(range(self._rank, len(examples), n_processes()))
        # A process that has no part computes all the same: the others wait for it at every layer. Weights that are put
        # together in inference mode could not be trained with afterwards: no graph is enough.
        has_graph = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(mode=False), torch.set_grad_enabled(has_graph):
            own = self._own.each([examples[place] for place in places] or examples[:1])
        if not places:
            own, places = own * 0, [0]
        values = own.new_zeros(len(examples), requires_grad=False)
        index = torch.tensor(places, device=own.device)
        values = values.index_add(0, index, own.detach())
        distributed.all_reduce(values)
        return values.index_add(0, index, own - own.detach())


def _added_up(gradient: torch.Tensor) -> torch.Tensor:
    total = gradient.clone()
    distributed.all_reduce(total)
    return total
