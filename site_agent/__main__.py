"""``python -m site_agent`` and ``wardround-site``."""

from __future__ import annotations

import sys

from site_agent.doctor.live import answer_live, is_live_question


def main() -> None:
    """The program's entry. A healthcheck is answered without loading the program."""
    arguments = sys.argv[1:]
    if is_live_question(arguments):
        sys.exit(answer_live(arguments))
    from site_agent.cli.app import run_program

    sys.exit(run_program(arguments))


if __name__ == "__main__":
    main()
