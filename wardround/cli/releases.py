"""``wardround releases``: approve, download and verify what a run made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.shell import shell_of
from wardround.evidence.release_folder import unpack_release, verify_release_folder

releases_app = typer.Typer(no_args_is_help=True, help="Releases: list, show, approve, withdraw, download, verify.")

ReleaseName = Annotated[
    str, typer.Argument(help="The release's identifier; see: wardround releases list", metavar="ID")
]
KeyFingerprint = Annotated[
    str | None, typer.Option("--key", help="SHA-256 of the release key, as the coordinator's operator told you.")
]

_COLUMNS = (("release", "release_id"), ("run", "run_id"), ("state", "state"), ("created", "created_at"))
_FACTS = (
    *_COLUMNS,
    ("manifest", "manifest_sha256"),
    ("approved by", "approved_by"),
    ("meaning", "approved_meaning"),
    ("approved", "approved_at"),
    ("withdrawn by", "withdrawn_by"),
    ("reason", "withdrawn_reason"),
)


@releases_app.command("list", epilog="Example: wardround releases list --run run-abc")
def list_releases(
    context: typer.Context, run: Annotated[str | None, typer.Option("--run", help="Of one run only.")] = None
) -> None:
    """List releases."""
    shell = shell_of(context)
    with shell.connect() as client:
        query = {"run_id": run} if run else {}
        releases = client.pages("/api/v1/releases", **query)
        shell.show_list(releases, _COLUMNS, nothing="There is no release yet; a run makes one when it is COMPLETED.")


@releases_app.command("show", epilog="Example: wardround releases show ID")
def show_release(context: typer.Context, release: ReleaseName) -> None:
    """Show one release."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.get(f"/api/v1/releases/{release}"), _FACTS)


@releases_app.command("approve", epilog='Example: wardround releases approve ID --meaning "reviewed, fit for research"')
def approve_release(
    context: typer.Context,
    release: ReleaseName,
    meaning: Annotated[str, typer.Option("--meaning", help="What your approval states; it is signed into the log.")],
) -> None:
    """Approve a candidate, which publishes it."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/releases/{release}:approve", {"meaning": meaning}), _FACTS)


@releases_app.command("withdraw", epilog='Example: wardround releases withdraw ID --reason "fault in the data"')
def withdraw_release(
    context: typer.Context,
    release: ReleaseName,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.")],
) -> None:
    """Withdraw a release: nobody can download it any more."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(client.post(f"/api/v1/releases/{release}:withdraw", {"reason": reason}), _FACTS)


@releases_app.command("download", epilog="Example: wardround releases download ID release/")
def download_release(
    context: typer.Context,
    release: ReleaseName,
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
) -> None:
    """Download a published release into a folder and verify it."""
    shell = shell_of(context)
    with shell.connect() as client, tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "release.zip"
        client.download(f"/api/v1/releases/{release}/download", archive)
        unpack_release(archive, folder)
    _show_verified(context, folder, key=None)


@releases_app.command("verify", epilog="Example: wardround releases verify release/ --key SHA256")
def verify_release(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder of a release.", metavar="DIR")],
    key: KeyFingerprint = None,
) -> None:
    """Check signature and digests of a release folder; needs no connection."""
    _show_verified(context, folder, key=key)


def _show_verified(context: typer.Context, folder: Path, *, key: str | None) -> None:
    shell = shell_of(context)
    verified = verify_release_folder(folder, expected_key_sha256=key)
    facts = {
        "release_dir": str(folder),
        "verified": True,
        "files": verified.n_files,
        "manifest_sha256": verified.manifest_sha256,
        "key_sha256": verified.key_sha256,
    }
    names = (
        ("folder", "release_dir"),
        ("files", "files"),
        ("manifest", "manifest_sha256"),
        ("signed by key", "key_sha256"),
    )
    shell.show_facts(facts, names)
    if key is None:
        shell.say("The signature and every digest hold. Compare the key's fingerprint with the coordinator's operator.")
    else:
        shell.say("The signature by the expected key and every digest hold.")
