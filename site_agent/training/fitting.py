"""What to say when memory ran out: the error, and the largest batch that would have fitted. Knows no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from site_agent.training.device import release_memory
from site_agent.training.errors import OutOfMemoryError
from site_agent.training.sharding import n_processes
from site_agent.training.task_half import LossSum, TaskExample

_MEMORY_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says, in one of the ways in which torch says it, that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error) for sentence in _MEMORY_SENTENCES)


def training_memory_error(
    train_loss: Callable[[Sequence[Any]], LossSum],
    parameters: Iterable[torch.nn.Parameter],
    examples: Sequence[TaskExample],
    *,
    batch_size: int,
) -> OutOfMemoryError:
    """The error of a training step for which memory ran out, with the batch size that fits, if one does.

    It is found by trying: half of the batch, half of that, down to one, each on the longest examples of the round. Call
    it outside the ``except`` clause that caught the failure, whose frames hold the batch that did not fit.
    """
    if n_processes() > 1:
        # The others may not have failed, and would wait for what is tried here.
        return OutOfMemoryError("one of the job's processes has not enough memory", batch_size=batch_size)
    trained = list(parameters)
    longest = sorted(examples, key=lambda example: -example.n_tokens)
    size = batch_size // 2
    while size >= 1:
        release_memory()
        if _fits(train_loss, trained, longest[:size]):
            message = "the device has not enough memory for the run's batches"
            return OutOfMemoryError(message, batch_size=batch_size, fitting_batch_size=size)
        size //= 2
    return OutOfMemoryError("the device has not enough memory for one example", batch_size=batch_size)


def _fits(
    train_loss: Callable[[Sequence[Any]], LossSum],
    parameters: list[torch.nn.Parameter],
    batch: Sequence[TaskExample],
) -> bool:
    try:
        train_loss(batch).loss.backward()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        for parameter in parameters:
            parameter.grad = None
    return True
