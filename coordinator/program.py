"""``wardround-coordinator``: a healthcheck is answered at once, everything else by the commands of ``__main__``."""

from __future__ import annotations

import sys

from coordinator.doctor.live import answer_live, is_live_question


def main() -> None:
    """The program's entry."""
    arguments = sys.argv[1:]
    if is_live_question(arguments):
        sys.exit(answer_live(arguments))
    from coordinator.__main__ import main as run_commands

    run_commands()
