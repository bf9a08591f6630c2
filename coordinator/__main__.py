"""``wardround-coordinator``: what whoever runs the service types; the one list of its commands."""

from __future__ import annotations

import sys

import typer

from coordinator.cli import service_commands, upkeep_commands
from coordinator.cli.ca_commands import ca_cli
from coordinator.cli.console import run_line, set_output

cli = typer.Typer(
    name="wardround-coordinator",
    help="Run a Wardround coordinator.\n\nExample: wardround-coordinator init ./coordinator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_cli = typer.Typer(help="The configuration.", no_args_is_help=True)
cli.add_typer(ca_cli, name="ca")
cli.add_typer(config_cli, name="config")
cli.callback()(set_output)
cli.command(name="init")(service_commands.init)
cli.command(name="make-password")(service_commands.make_password_command)
cli.command(name="serve")(service_commands.serve_command)
cli.command(name="migrate")(service_commands.migrate_command)
cli.command(name="backup")(upkeep_commands.backup_command)
cli.command(name="restore")(upkeep_commands.restore_command)
cli.command(name="acknowledge-restore")(upkeep_commands.acknowledge_command)
cli.command(name="token")(upkeep_commands.token_command)
cli.command(name="doctor")(service_commands.doctor)
config_cli.command(name="check")(service_commands.check_config)


def main() -> None:
    """The entry point."""
    sys.exit(run_line(cli, sys.argv[1:]))


if __name__ == "__main__":
    main()
