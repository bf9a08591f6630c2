"""``wardround users`` and ``wardround tokens``: who may do what, and with which token."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.shell import shell_of
from wardround.client.connection import write_secret
from wardround.documents import text_of
from wardround.errors import UsageInvalidError

users_app = typer.Typer(no_args_is_help=True, help="Users and roles: list, add, grant, revoke, disable, enable.")
tokens_app = typer.Typer(no_args_is_help=True, help="Bearer tokens: create, list, revoke.")

SECONDS_A_DAY = 86400


class Role(StrEnum):
    """What a user may be."""

    ADMIN = "admin"
    STUDY_LEAD = "study-lead"
    PRIVACY_OFFICER = "privacy-officer"
    AUDITOR = "auditor"


UserName = Annotated[str, typer.Argument(help="The user's name.", metavar="USER")]
RoleName = Annotated[Role, typer.Argument(help="The role.")]

_USER_COLUMNS = (("user", "name"), ("roles", "roles"), ("since", "created_at"), ("disabled", "disabled_at"))
_TOKEN_COLUMNS = (
    ("token", "token_id"),
    ("user", "user_id"),
    ("label", "label"),
    ("scopes", "scopes"),
    ("expires", "expires_at"),
    ("last used", "last_used_at"),
    ("revoked", "revoked_at"),
)


@users_app.command("list", epilog="Example: wardround users list")
def list_users(context: typer.Context) -> None:
    """List every user with their roles."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_list(client.pages("/api/v1/users"), _USER_COLUMNS, nothing="There is no user.")


@users_app.command("add", epilog="Example: wardround users add ada --role study-lead")
def add_user(
    context: typer.Context,
    user: UserName,
    role: Annotated[list[Role] | None, typer.Option("--role", help="A role; may be given several times.")] = None,
) -> None:
    """Add a user."""
    shell = shell_of(context)
    with shell.connect() as client:
        added = client.post("/api/v1/users", {"name": user, "roles": [item.value for item in role or []]})
    shell.show_facts(added, _USER_COLUMNS)
    shell.say(f"Next: wardround tokens create --user {user} --label LABEL --file FILE")


@users_app.command("grant", epilog="Example: wardround users grant ada auditor")
def grant_role(context: typer.Context, user: UserName, role: RoleName) -> None:
    """Give a user a role."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/users/{user}:grant", {"role": role.value}), _USER_COLUMNS)


@users_app.command("revoke", epilog="Example: wardround users revoke ada auditor")
def revoke_role(context: typer.Context, user: UserName, role: RoleName) -> None:
    """Take a role from a user."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/users/{user}:revoke", {"role": role.value}), _USER_COLUMNS)


@users_app.command("disable", epilog="Example: wardround users disable ada")
def disable_user(context: typer.Context, user: UserName) -> None:
    """Shut a user out at once, whatever tokens they hold."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/users/{user}:disable"), _USER_COLUMNS)


@users_app.command("enable", epilog="Example: wardround users enable ada")
def enable_user(context: typer.Context, user: UserName) -> None:
    """Let a user in again, with the roles and tokens they had."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/users/{user}:enable"), _USER_COLUMNS)


@users_app.command("reset-passphrase", epilog="Example: wardround users reset-passphrase maria")
def reset_passphrase(context: typer.Context, user: UserName) -> None:
    """Forget a user's signing passphrase, so that they set another; it stands in the audit log."""
    shell = shell_of(context)
    with shell.connect() as client:
        client.post(f"/api/v1/users/{user}:reset-passphrase")
        shell.show_facts({"user": user, "has_passphrase": False}, (("user", "user"), ("passphrase", "has_passphrase")))


@tokens_app.command("create", epilog="Example: wardround tokens create --label laptop --file token --days 30")
def create_token(
    context: typer.Context,
    label: Annotated[str, typer.Option("--label", help="What the token is for.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Write the token there, mode 0600; else it is printed.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Another user than yourself (admins).")] = None,
    days: Annotated[
        int | None, typer.Option("--days", min=1, help="How long it works; else as the coordinator says, 90 days.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="What it may do, such as runs:read, runs:* or *:read; several times for several; else all."
        ),
    ] = None,
) -> None:
    """Create a token; it is shown once and stored as a hash only."""
    if file is not None and file.exists():
        raise UsageInvalidError(
            f"{file} exists already", advice="Name another file; a token is not written over another."
        )
    if file is not None and not file.parent.is_dir():
        raise UsageInvalidError(f"there is no folder {file.parent}", advice="Make it first; no token was made.")
    shell = shell_of(context)
    request: dict[str, object] = {"label": label}
    if user is not None:
        request["user_id"] = user
    if days is not None:
        request["lifetime_s"] = days * SECONDS_A_DAY
    if scope:
        request["scopes"] = scope
    with shell.connect() as client:
        created = dict(client.post("/api/v1/tokens", request))
    if file is not None:
        write_secret(file, text_of(created, "token").encode() + b"\n")
        created["token"] = f"in {file}"
    columns = (("token", "token"), ("identifier", "token_id"), ("label", "label"))
    shell.show_facts(created, (*columns, ("scopes", "scopes"), ("expires", "expires_at")))


@tokens_app.command("list", epilog="Example: wardround tokens list --all")
def list_tokens(
    context: typer.Context,
    *,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's tokens (admins).")] = False,
) -> None:
    """List tokens; never their secrets."""
    shell = shell_of(context)
    with shell.connect() as client:
        query = {"scope": "all"} if everybody else {}
        shell.show_list(client.pages("/api/v1/tokens", **query), _TOKEN_COLUMNS, nothing="There is no token.")


@tokens_app.command("revoke", epilog="Example: wardround tokens revoke TOKEN_ID")
def revoke_token(
    context: typer.Context,
    token: Annotated[
        str, typer.Argument(help="The identifier that 'tokens list' shows; not the token.", metavar="TOKEN_ID")
    ],
) -> None:
    """Make a token useless at once."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/tokens/{token}:revoke"), _TOKEN_COLUMNS)
