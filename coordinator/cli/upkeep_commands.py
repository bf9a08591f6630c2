"""Commands that keep a coordinator: backup, restore, and a token for whoever has none left.

A command imports what it needs when it runs, so that ``--help`` needs no server to be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.console import DEFAULT_CONFIG, Config, answer, reported, say_progress
from fl_protocol.clock import SystemClock


@reported
def backup_command(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    config: Config = DEFAULT_CONFIG,
    passphrase_file: Annotated[Path | None, typer.Option(help="A file (0600) with the keys' passphrase.")] = None,
    *,
    is_without_keys: Annotated[bool, typer.Option("--without-keys", help="Leave the private keys out.")] = False,
) -> None:
    """Write everything into one file, while the coordinator serves.

    Example: wardround-coordinator backup /backup/wardround.tar --passphrase-file /root/backup.pass
    """
    if (passphrase_file is None) != is_without_keys:
        raise typer.BadParameter("say what becomes of the private keys: --passphrase-file FILE, or --without-keys")
    from coordinator.cli.upkeep_answers import backup_answer

    answer(
        *backup_answer(
            config,
            file,
            passphrase_file=passphrase_file,
            clock=SystemClock(),
            report=say_progress,
        )
    )


@reported
def restore_command(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    directory: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    passphrase_file: Annotated[Path | None, typer.Option(help="The file with the passphrase of the keys.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A copy of the keys, for a backup without them.")] = None,
    database_url: Annotated[str | None, typer.Option(help="Another, empty database than the backup's.")] = None,
    epoch: Annotated[
        int | None, typer.Option(min=1, help="By default the backup's and one; higher if it was restored before.")
    ] = None,
) -> None:
    """Make a coordinator out of a backup, in a new epoch.

    Example: wardround-coordinator restore /backup/wardround.tar /srv/wardround --passphrase-file /root/backup.pass
    """
    from coordinator.cli.upkeep_answers import restore_answer
    from coordinator.upkeep.restore import RestoreOptions

    options = RestoreOptions(keys_folder=keys, database_url=database_url, epoch=epoch)
    answer(
        *restore_answer(
            file,
            directory,
            passphrase_file=passphrase_file,
            options=options,
            clock=SystemClock(),
            report=say_progress,
        )
    )


@reported
def acknowledge_command(
    by: Annotated[str, typer.Option(help="Who has seen what was lost, for the audit log.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Say that an admin has seen what a restore lost; runs go on.

    Example: wardround-coordinator acknowledge-restore --by maria --config /srv/wardround/coordinator.yaml
    """
    from coordinator.cli.upkeep_answers import acknowledge_answer

    answer(*acknowledge_answer(config, by=by, clock=SystemClock()))


@reported
def token_command(
    file: Annotated[Path, typer.Option("--file", help="Where to write it, mode 0600; must not exist.")],
    user: Annotated[str, typer.Option(help="Whose it is to be.")] = "admin",
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Make a token on the host, for a user whose tokens have all expired.

    Example: wardround-coordinator token --user admin --file admin.token --config /srv/wardround/coordinator.yaml
    """
    from coordinator.cli.upkeep_answers import token_answer

    answer(*token_answer(config, file, user=user, clock=SystemClock()))
