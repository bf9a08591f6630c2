"""Commands that make a coordinator, serve it and look whether it is well.

A command imports what it needs when it runs, so that ``--help`` and ``config check`` need no server to be loaded.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import structlog
import typer

from coordinator.cli.console import DEFAULT_CONFIG, EXIT_FAILED, Config, answer, reported
from coordinator.settings import (
    DEFAULT_DATABASE_URL,
    LogFormat,
    LogSettings,
    default_enrolment_http1_port,
    default_http1_port,
    load_settings,
    unknown_environment_sections,
)
from fl_protocol.clock import SystemClock
from fl_protocol.errors import WardroundError
from fl_protocol.free_memory import keep_room_for_chunks
from fl_protocol.telemetry.logs import configure_logs

R = TypeVar("R", bound=StrEnum)

_SERVE_FILE = "WARDROUND_SERVE_FILE"


@reported
def init(  # noqa: PLR0913, PLR0917 # one parameter an option of the command line
    directory: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    consortium: Annotated[str, typer.Option(help="The name in the root certificate.")] = "Wardround consortium",
    rest_port: Annotated[int, typer.Option(min=0, max=65535, help="0: chosen at each start.")] = 8443,
    gateway_port: Annotated[int, typer.Option(min=0, max=65535)] = 8444,
    enrolment_port: Annotated[int, typer.Option(min=0, max=65535)] = 8445,
    http1_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The gateway over HTTP/1.1; 8446, or chosen where the gateway's is."),
    ] = None,
    database_url: Annotated[
        str, typer.Option(help="SQLite in the folder, or postgresql+pg8000://user@host/name, empty.")
    ] = DEFAULT_DATABASE_URL,
    database_password_file: Annotated[
        Path | None, typer.Option(help="A file with that database's password, mode 0600.")
    ] = None,
    database_root_file: Annotated[
        Path | None, typer.Option(help="The certificate behind that server's: TLS is then required and checked.")
    ] = None,
    hand_over_to: Annotated[
        Path | None, typer.Option("--hand-over", help="A folder that gets the admin's token and the root certificate.")
    ] = None,
    *,
    is_if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Where the coordinator is there already, change nothing.")
    ] = False,
) -> None:
    """Make a coordinator: configuration, keys, database, the first admin's token.

    Example: wardround-coordinator init ./coordinator --consortium "Rare disease network"
    """
    from coordinator.installation import CONFIG_FILE
    from coordinator.new_installation import DatabaseChoice, Ports, install

    if is_if_missing and (directory / CONFIG_FILE).is_file():
        config = directory.absolute() / CONFIG_FILE
        answer({"config": str(config), "made": False}, [f"{config} is there already; nothing was changed."])
        return
    made = install(
        directory,
        consortium=consortium,
        ports=Ports(
            rest=rest_port,
            gateway=gateway_port,
            enrolment=enrolment_port,
            gateway_http1=default_http1_port(gateway_port) if http1_port is None else http1_port,
            enrolment_http1=default_enrolment_http1_port(enrolment_port),
        ),
        clock=SystemClock(),
        database=DatabaseChoice(url=database_url, password_file=database_password_file, root_file=database_root_file),
        hand_over_to=hand_over_to,
    )
    command = f"wardround-coordinator serve --config {made.config}"
    answer(
        {
            "config": str(made.config),
            "admin_token_file": str(made.admin_token_file),
            "root_certificate": str(made.root_certificate),
            "root_sha256": made.root_sha256,
            "next": command,
        },
        [
            f"Made {made.config}",
            f"The first admin's token is in {made.admin_token_file}",
            f"Root certificate {made.root_certificate}",
            f"  SHA-256 {made.root_sha256}",
            "",
            "Next:",
            f"  {command}",
        ],
    )


@reported
def make_password_command(
    file: Annotated[Path, typer.Argument(help="Where to write it, mode 0600; one that is there stays.")],
    given: Annotated[
        Path | None, typer.Option("--given", help="A file with the password to take; where it is empty, a random one.")
    ] = None,
    *,
    is_shared: Annotated[bool, typer.Option("--shared", help="Its group may read it, too: mode 0640.")] = False,
) -> None:
    """Write a password for the database into a file, once.

    Example: wardround-coordinator make-password /srv/secrets/database.password
    """
    from coordinator.hand_over import make_password

    is_new = make_password(file, given=given, is_shared=is_shared)
    said = f"Wrote a password to {file}" if is_new else f"{file} is there already; nothing was changed."
    answer({"file": str(file), "made": is_new}, [said])


@reported
def serve_command(
    config: Config = DEFAULT_CONFIG,
    roles: Annotated[str, typer.Option(help="What this process does, separated by commas.")] = "api,gateway,driver",
    serve_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_SERVE_FILE,
            help="Where it says its addresses: serve.json, or serve-ROLES-PID.json with fewer roles.",
        ),
    ] = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Example: wardround-coordinator serve --config ./coordinator/coordinator.yaml
    """
    import asyncio

    from coordinator.app import serve
    from coordinator.installation import open_installation
    from coordinator.parts import ServiceRole

    wanted = frozenset(_role(ServiceRole, name.strip()) for name in roles.split(",") if name.strip())
    if not wanted:
        raise typer.BadParameter("name at least one role", param_hint="--roles")
    keep_room_for_chunks(os.environ)
    installation = open_installation(config)
    _configure_logs(installation.settings.log)
    log = structlog.get_logger("coordinator")
    for name in unknown_environment_sections():
        log.warning("environment_variable_of_no_section", variable=name)
    try:
        asyncio.run(serve(installation, roles=wanted, clock=SystemClock(), serve_file=serve_file))
    except* WardroundError as group:
        # One cause is enough to end; the others are in the log.
        raise _first(group) from None


@reported
def migrate_command(config: Config = DEFAULT_CONFIG) -> None:
    """Bring the database to this version's schema.

    Example: wardround-coordinator migrate --config ./coordinator/coordinator.yaml
    """
    from coordinator.installation import open_installation

    open_installation(config).migrate_database()
    answer({"migrated": True}, ["The database has this version's schema."])


@reported
def doctor(
    config: Config = DEFAULT_CONFIG,
    *,
    is_live: Annotated[
        bool, typer.Option("--live", help="Only ask whether the coordinator that runs here is well; for healthchecks.")
    ] = False,
    is_loop_only: Annotated[
        bool,
        typer.Option("--loop", help="With --live: only whether its loop turns; for whoever would start it again."),
    ] = False,
    serve_file: Annotated[
        Path | None,
        typer.Option(envvar=_SERVE_FILE, help="The process that `serve` told this file; by default all of the folder."),
    ] = None,
) -> None:
    """Check configuration, keys, database, clock, blobs, disk, backup, ports and the addresses that sites are told.

    Example: wardround-coordinator doctor --config ./coordinator/coordinator.yaml
    """
    if is_live:
        _answer_live(config, serve_file, is_loop_only=is_loop_only)
        return
    if is_loop_only:
        raise typer.BadParameter("--loop is said with --live", param_hint="--loop")
    from coordinator.doctor.table import diagnose
    from fl_protocol.telemetry.findings import Health, page, verdict

    results = diagnose(config, clock=SystemClock(), serve_file=serve_file)
    is_well = all(result.health is not Health.FAILED for result in results)
    answer(
        {"ok": is_well, "checks": [result.document() for result in results]},
        [*page(results), "", verdict(results, well="Nothing to mend.")],
    )
    if not is_well:
        raise typer.Exit(EXIT_FAILED)


def _answer_live(config: Path, serve_file: Path | None, *, is_loop_only: bool) -> None:
    # Asked as a program of its own, this is answered in ``coordinator.program``, before anything else is loaded.
    from coordinator.doctor.live import ask_live

    said = ask_live(config.resolve().parent, serve_file, is_loop_only=is_loop_only)
    answer(said.document(), [said.sentence])
    if not said.is_well:
        raise typer.Exit(EXIT_FAILED)


@reported
def check_config(config: Config = DEFAULT_CONFIG) -> None:
    """Check the configuration, with what the environment overrides.

    Example: WARDROUND_GATEWAY__PORT=443 wardround-coordinator config check
    """
    settings = load_settings(config)
    unknown = unknown_environment_sections()
    answer(
        {"ok": True, "settings": settings.model_dump(mode="json"), "unused_environment": list(unknown)},
        [
            f"{config}: no fault",
            *(f"{name}: the coordinator has no such section (a site agent may)" for name in unknown),
        ],
    )


def _role(roles: type[R], name: str) -> R:
    try:
        return roles(name)
    except ValueError as error:
        raise typer.BadParameter(f"a role is one of {', '.join(roles)}", param_hint="--roles") from error


def _first(group: BaseExceptionGroup[WardroundError]) -> WardroundError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group of exceptions is not empty")


def _configure_logs(settings: LogSettings) -> None:
    configure_logs(settings.level.value, is_json=settings.format is LogFormat.JSON)
