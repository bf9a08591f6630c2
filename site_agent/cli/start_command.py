"""``wardround-site start``: run the agent in the foreground, until it is told to stop."""

from __future__ import annotations

import typer

from fl_protocol.telemetry.logs import configure_logs
from site_agent.cli.console import console_of
from site_agent.enrolment.identity_file import load_identity
from site_agent.enrolment.keystore import KeyStore
from site_agent.policy_file import load_policy
from site_agent.settings import LogSettings, load_settings


def start(context: typer.Context) -> None:
    """Run the agent in the foreground; SIGTERM or Ctrl-C stops it cleanly. Logs go to stderr.

    Example: wardround-site start --state-dir /var/lib/wardround
    """
    console = console_of(context)
    settings = load_settings(console.folder.root)
    identity = load_identity(console.folder)
    # What would stop every round is said before the first one.
    KeyStore(console.folder).ensure_private()
    load_policy(settings.policy_path)
    configure_logging(settings.log)
    from site_agent.daemon import run_site_agent

    run_site_agent(settings)
    console.answer({"site_id": identity.site_id, "state": "stopped"}, "Stopped.")


def configure_logging(settings: LogSettings) -> None:
    """Send structured logs to stderr, as text or as one JSON document a line."""
    configure_logs(settings.level, is_json=settings.format == "json")
