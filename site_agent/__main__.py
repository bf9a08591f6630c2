"""``python -m site_agent`` and ``wardround-site``."""

from __future__ import annotations

from site_agent.cli.app import main

if __name__ == "__main__":
    main()
