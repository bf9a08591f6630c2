"""``wardround-coordinator``: what whoever runs the service types.

A command imports what it needs when it runs, so that `--help` and `config check` need no server to be loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import structlog
import typer

from coordinator.settings import (
    DEFAULT_DATABASE_URL,
    LogFormat,
    LogSettings,
    SettingsInvalidError,
    default_enrolment_http1_port,
    default_http1_port,
    load_settings,
    unknown_environment_sections,
)
from fl_protocol.clock import SystemClock
from fl_protocol.errors import WardroundError
from fl_protocol.telemetry.logs import configure_logs

P = ParamSpec("P")
R = TypeVar("R", bound=StrEnum)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 5
_UNAVAILABLE_CODES = frozenset({"listener-failed", "database-busy", "database-unavailable", "rotation-waits"})

cli = typer.Typer(
    name="wardround-coordinator",
    help="Run a Wardround coordinator.\n\nExample: wardround-coordinator init ./coordinator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ca_cli = typer.Typer(help="The built-in certificate authority.", no_args_is_help=True)
config_cli = typer.Typer(help="The configuration.", no_args_is_help=True)
cli.add_typer(ca_cli, name="ca")
cli.add_typer(config_cli, name="config")

Config = Annotated[Path, typer.Option("--config", "-c", help="The coordinator's file.", envvar="WARDROUND_CONFIG")]
_DEFAULT_CONFIG = Path("coordinator.yaml")
_SERVE_FILE = "WARDROUND_SERVE_FILE"


class _Output:
    """Whether answers are for programs. Set once, by the option before the command."""

    is_json = False


@cli.callback()
def set_output(
    *,
    is_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs on stderr.")] = False,
) -> None:
    """Run a Wardround coordinator."""
    _Output.is_json = is_json


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that were raised on purpose into a sentence and an exit code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except WardroundError as error:
            _fail(error)

    return run


@cli.command()
@_reported
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
    from coordinator.installation import CONFIG_FILE, DatabaseChoice, Ports, install

    if is_if_missing and (directory / CONFIG_FILE).is_file():
        config = directory.absolute() / CONFIG_FILE
        _answer({"config": str(config), "made": False}, [f"{config} is there already; nothing was changed."])
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
    _answer(
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


@cli.command(name="make-password")
@_reported
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
    _answer({"file": str(file), "made": is_new}, [said])


@cli.command(name="serve")
@_reported
def serve_command(
    config: Config = _DEFAULT_CONFIG,
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

    from coordinator.app import ServiceRole, serve
    from coordinator.installation import open_installation

    wanted = frozenset(_role(ServiceRole, name.strip()) for name in roles.split(",") if name.strip())
    if not wanted:
        raise typer.BadParameter("name at least one role", param_hint="--roles")
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


@cli.command(name="migrate")
@_reported
def migrate_command(config: Config = _DEFAULT_CONFIG) -> None:
    """Bring the database to this version's schema.

    Example: wardround-coordinator migrate --config ./coordinator/coordinator.yaml
    """
    from coordinator.installation import open_installation

    open_installation(config).migrate_database()
    _answer({"migrated": True}, ["The database has this version's schema."])


@cli.command(name="backup")
@_reported
def backup_command(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    config: Config = _DEFAULT_CONFIG,
    passphrase_file: Annotated[Path | None, typer.Option(help="A file (0600) with the keys' passphrase.")] = None,
    *,
    is_without_keys: Annotated[bool, typer.Option("--without-keys", help="Leave the private keys out.")] = False,
) -> None:
    """Write everything into one file, while the coordinator serves.

    Example: wardround-coordinator backup /backup/wardround.tar --passphrase-file /root/backup.pass
    """
    from coordinator.upkeep_commands import backup_answer

    _answer(
        *backup_answer(
            config,
            file,
            passphrase_file=passphrase_file,
            is_without_keys=is_without_keys,
            clock=SystemClock(),
            report=_say_progress,
        )
    )


@cli.command(name="restore")
@_reported
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
    from coordinator.upkeep.restore import RestoreOptions
    from coordinator.upkeep_commands import restore_answer

    options = RestoreOptions(keys_folder=keys, database_url=database_url, epoch=epoch)
    _answer(
        *restore_answer(
            file,
            directory,
            passphrase_file=passphrase_file,
            options=options,
            clock=SystemClock(),
            report=_say_progress,
        )
    )


@cli.command(name="acknowledge-restore")
@_reported
def acknowledge_command(
    by: Annotated[str, typer.Option(help="Who has seen what was lost, for the audit log.")],
    config: Config = _DEFAULT_CONFIG,
) -> None:
    """Say that an admin has seen what a restore lost; runs go on.

    Example: wardround-coordinator acknowledge-restore --by maria --config /srv/wardround/coordinator.yaml
    """
    from coordinator.upkeep_commands import acknowledge_answer

    _answer(*acknowledge_answer(config, by=by, clock=SystemClock()))


@cli.command(name="token")
@_reported
def token_command(
    file: Annotated[Path, typer.Option("--file", help="Where to write it, mode 0600; must not exist.")],
    user: Annotated[str, typer.Option(help="Whose it is to be.")] = "admin",
    config: Config = _DEFAULT_CONFIG,
) -> None:
    """Make a token on the host, for a user whose tokens have all expired.

    Example: wardround-coordinator token --user admin --file admin.token --config /srv/wardround/coordinator.yaml
    """
    from coordinator.upkeep_commands import token_answer

    _answer(*token_answer(config, file, user=user, clock=SystemClock()))


@cli.command()
@_reported
def doctor(
    config: Config = _DEFAULT_CONFIG,
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
    _answer(
        {"ok": is_well, "checks": [result.document() for result in results]},
        [*page(results), "", verdict(results, well="Nothing to mend.")],
    )
    if not is_well:
        raise typer.Exit(EXIT_FAILED)


def _answer_live(config: Path, serve_file: Path | None, *, is_loop_only: bool) -> None:
    # Asked as a program of its own, this is answered in ``coordinator.program``, before anything else is loaded.
    from coordinator.doctor.live import ask_live

    said = ask_live(config.resolve().parent, serve_file, is_loop_only=is_loop_only)
    _answer(said.document(), [said.sentence])
    if not said.is_well:
        raise typer.Exit(EXIT_FAILED)


@ca_cli.command(name="show")
@_reported
def show_ca(config: Config = _DEFAULT_CONFIG) -> None:
    """Show the roots and where their rotation stands, and the signing keys' fingerprints.

    Example: wardround-coordinator ca show
    """
    from coordinator.ca_commands import show_answer

    _answer(*show_answer(config, clock=SystemClock()))


@ca_cli.command(name="rotate")
@_reported
def rotate_ca(
    config: Config = _DEFAULT_CONFIG,
    *,
    is_hurried: Annotated[
        bool, typer.Option("--without-waiting", help="Cut off sites that are not ready; they recover by themselves.")
    ] = False,
) -> None:
    """Take the next step to another root: prepare it, issue under it, retire the last one. Give it three times.

    Example: wardround-coordinator ca rotate
    """
    from coordinator.ca_commands import rotate_answer

    _answer(*rotate_answer(config, is_hurried=is_hurried, clock=SystemClock()))


@ca_cli.command(name="csr")
@_reported
def make_ca_csr(
    file: Annotated[Path, typer.Argument(help="Where to write the request; must not exist.")],
    config: Config = _DEFAULT_CONFIG,
) -> None:
    """Make an issuing key and the request that an offline root is to sign.

    Example: wardround-coordinator ca csr issuer.csr
    """
    from coordinator.ca_commands import csr_answer

    _answer(*csr_answer(config, file))


@ca_cli.command(name="install")
@_reported
def install_issuer(
    file: Annotated[Path, typer.Argument(help="What `ca sign` wrote: the issuer's certificate and its root.")],
    config: Config = _DEFAULT_CONFIG,
) -> None:
    """Make what an offline root signed the next issuer; `ca rotate` goes on from there.

    Example: wardround-coordinator ca install issuer.pem
    """
    from coordinator.ca_commands import install_answer

    _answer(*install_answer(config, file, clock=SystemClock()))


@ca_cli.command(name="offline-root")
@_reported
def make_offline_root(
    folder: Annotated[Path, typer.Argument(help="Where to write key and certificate, on a machine without network.")],
    consortium: Annotated[str, typer.Option(help="The name in the root certificate.")] = "Wardround consortium",
) -> None:
    """Make a root whose key never sees the coordinator.

    Example: wardround-coordinator ca offline-root ./root --consortium "Rare disease network"
    """
    from coordinator.ca_commands import offline_root_answer

    _answer(*offline_root_answer(folder, consortium=consortium, clock=SystemClock()))


@ca_cli.command(name="sign")
@_reported
def sign_issuer(
    folder: Annotated[Path, typer.Argument(help="The folder of the offline root.")],
    csr: Annotated[Path, typer.Argument(help="The request that `ca csr` wrote.")],
    file: Annotated[Path, typer.Argument(help="Where to write the certificates; must not exist.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it may issue.")] = 730,
) -> None:
    """Sign an issuer's request with an offline root.

    Example: wardround-coordinator ca sign ./root issuer.csr issuer.pem
    """
    from coordinator.ca_commands import sign_answer

    _answer(*sign_answer(folder, csr, file, days=days, clock=SystemClock()))


@ca_cli.command(name="export-root")
@_reported
def export_root(config: Config = _DEFAULT_CONFIG) -> None:
    """Print the root certificate, PEM; while it is replaced, both, the issuing one first.

    Example: wardround-coordinator ca export-root > root.pem
    """
    from coordinator.installation import ROOT_CERTIFICATE, open_installation

    installation = open_installation(config)
    authority = installation.load_keys().authority
    pem = authority.trusted_pem.decode()
    path = installation.directory / ROOT_CERTIFICATE
    _answer({"root_pem": pem, "root_sha256": authority.root_sha256, "path": str(path)}, [pem.rstrip()])


@config_cli.command(name="check")
@_reported
def check_config(config: Config = _DEFAULT_CONFIG) -> None:
    """Check the configuration, with what the environment overrides.

    Example: WARDROUND_GATEWAY__PORT=443 wardround-coordinator config check
    """
    settings = load_settings(config)
    unknown = unknown_environment_sections()
    _answer(
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


def _answer(document: Mapping[str, object], lines: list[str]) -> None:
    typer.echo(json.dumps(document, indent=2) if _Output.is_json else "\n".join(lines))


def _say_progress(line: str) -> None:
    typer.echo(line, err=True)


def _fail(error: WardroundError) -> None:
    faults = list(error.faults) if isinstance(error, SettingsInvalidError) else []
    if _Output.is_json:
        typer.echo(
            json.dumps(
                {"error": {"code": error.code, "message": error.message, "facts": error.facts, "faults": faults}}
            )
        )
    elif faults:
        typer.echo("\n".join(["The configuration has faults:", *(f"  {fault}" for fault in faults)]), err=True)
    else:
        typer.echo(f"{error} [{error.code}]", err=True)
    raise typer.Exit(_exit_code(error))


def _exit_code(error: WardroundError) -> int:
    if isinstance(error, SettingsInvalidError):
        return EXIT_USAGE
    return EXIT_UNAVAILABLE if error.code in _UNAVAILABLE_CODES else EXIT_FAILED


def _configure_logs(settings: LogSettings) -> None:
    configure_logs(settings.level.value, is_json=settings.format is LogFormat.JSON)


def main() -> None:
    """The entry point."""
    cli()


if __name__ == "__main__":
    main()
