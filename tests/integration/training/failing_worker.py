"""The trainer's own program in float32, and one of two workers that runs out of memory in its first batch, once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from site_agent.training import device
from site_agent.training.__main__ import main
from site_agent.training.collate import Example
from site_agent.training.sharding import SharedCompletionLoss, distributed
from site_agent.training.task_half import LossSum

device.cpu_flags = frozenset

FAILED = Path(sys.argv[sys.argv.index("--spool") + 1]) / "failed"
compute = SharedCompletionLoss.__call__


def failing(self: SharedCompletionLoss, examples: Sequence[Example]) -> LossSum:
    if distributed.get_rank() == 1 and not FAILED.exists():
        FAILED.touch()
        raise MemoryError
    return compute(self, examples)


SharedCompletionLoss.__call__ = failing  # type: ignore[method-assign]

if __name__ == "__main__":
    raise SystemExit(main())
