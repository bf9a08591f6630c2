"""The table of a study: federated beside pooled and local-only training, at equal steps, judged by one held-out set.

``python -m benchmarks studies``. Knows the trainer and the folds; nothing of the coordinator, the agent or the network.
Tables and pages are read and written without torch.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Fill a table, or write the pages; returns the exit code."""
    from benchmarks.studies.command import main as run

    return run(arguments)
