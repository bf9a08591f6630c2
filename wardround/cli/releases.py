"""``wardround releases``: review, sign, download and verify what a run made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.shell import Shell, shell_of
from wardround.client.connection import read_token
from wardround.client.rest import RestClient
from wardround.documents import Document, documents_of, text_of, texts_of
from wardround.evidence.release_folder import Standing, unpack_release, verify_release_folder

releases_app = typer.Typer(
    no_args_is_help=True, help="Releases: list, show, review, approve, withdraw, download, verify."
)


class SigningRole(StrEnum):
    """In which a release is signed."""

    STUDY_LEAD = "study-lead"
    PRIVACY_OFFICER = "privacy-officer"


ReleaseName = Annotated[
    str, typer.Argument(help="The release's identifier; see: wardround releases list", metavar="ID")
]
KeyFingerprint = Annotated[
    str | None, typer.Option("--key", help="SHA-256 of the release key, as the coordinator's operator told you.")
]

_COLUMNS = (
    ("release", "release_id"),
    ("run", "run_id"),
    ("state", "state"),
    ("created", "created_at"),
    ("marks", "marked_by"),
)
_FACTS = (
    *_COLUMNS[:4],
    ("manifest", "manifest_sha256"),
    ("signed by", "signed_by"),
    ("published", "published_at"),
    ("made from", "parents"),
    ("marks", "marked_by"),
    ("made from it", "descendants"),
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
        releases = [_told(release) for release in client.pages("/api/v1/releases", **query)]
        shell.show_list(releases, _COLUMNS, nothing="There is no release yet; a run makes one when it is COMPLETED.")


@releases_app.command("show", epilog="Example: wardround releases show ID")
def show_release(context: typer.Context, release: ReleaseName) -> None:
    """Show one release: who signed it, what it was made from, and what became of that."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(_told(client.get(f"/api/v1/releases/{release}")), _FACTS)


@releases_app.command("review", epilog="Example: wardround releases review ID candidate/")
def review_release(
    context: typer.Context,
    release: ReleaseName,
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
) -> None:
    """Download a candidate into a folder and verify it, before you sign it."""
    shell = shell_of(context)
    with shell.connect() as client:
        _download(client, f"/api/v1/releases/{release}/candidate", folder)
    digest = _show_verified(context, folder, key=None, standing=Standing.CANDIDATE)
    shell.say("Nobody has released this. To sign exactly what you have reviewed:")
    shell.say(f"wardround releases approve {release} --manifest {digest} --meaning TEXT")


@releases_app.command("approve", epilog='Example: wardround releases approve ID --meaning "reviewed, fit for research"')
def approve_release(
    context: typer.Context,
    release: ReleaseName,
    *,
    meaning: Annotated[str, typer.Option("--meaning", help="What your signature states; it stays in the log.")],
    manifest: Annotated[
        str | None,
        typer.Option(
            "--manifest", help="SHA-256 of the manifest that you reviewed; else the present one, shown first."
        ),
    ] = None,
    role: Annotated[
        SigningRole | None, typer.Option("--as", help="In which of your roles you sign, if you hold both.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Your signing passphrase; else you are asked for it.")
    ] = None,
    fresh_token_file: Annotated[
        Path | None,
        typer.Option("--fresh-token-file", help="A token of a login of just now, if an identity provider knows you."),
    ] = None,
) -> None:
    """Sign a candidate. Two persons do, a study lead and a privacy officer; the second signature publishes it."""
    shell = shell_of(context)
    with shell.connect() as client:
        found = client.get(f"/api/v1/releases/{release}")
        for mark in documents_of(found, "marks"):
            shell.note(f"Known against it: {_mark(mark)}")
        digest = manifest or text_of(found, "manifest_sha256")
        if manifest is None:
            shell.note(f"You sign the manifest {digest}.")
        request: dict[str, object] = {"meaning": meaning, "manifest_sha256": digest}
        if role is not None:
            request["role"] = role.value
        if fresh_token_file is not None:
            request["fresh_token"] = read_token(fresh_token_file)
        elif passphrase_file is not None:
            request["passphrase"] = read_token(passphrase_file)
        else:
            request["passphrase"] = typer.prompt("Signing passphrase", hide_input=True, err=True)
        shell.show_facts(_told(client.post(f"/api/v1/releases/{release}:approve", request)), _FACTS)


@releases_app.command("withdraw", epilog='Example: wardround releases withdraw ID --reason "fault in the data"')
def withdraw_release(
    context: typer.Context,
    release: ReleaseName,
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the audit log.")],
) -> None:
    """Withdraw a release: nobody can download it any more, and everything that was made from it is marked."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts(_told(client.post(f"/api/v1/releases/{release}:withdraw", {"reason": reason})), _FACTS)


@releases_app.command("download", epilog="Example: wardround releases download ID release/")
def download_release(
    context: typer.Context,
    release: ReleaseName,
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="DIR")],
) -> None:
    """Download a published release into a folder and verify it."""
    shell = shell_of(context)
    with shell.connect() as client:
        _download(client, f"/api/v1/releases/{release}/download", folder)
    # What the coordinator's rule lets pass is told, and judged by whoever verifies.
    _show_verified(context, folder, key=None, standing=Standing.ONE_SIGNATURE)


@releases_app.command("verify", epilog="Example: wardround releases verify release/ --key SHA256")
def verify_release(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder of a release.", metavar="DIR")],
    key: KeyFingerprint = None,
    *,
    candidate: Annotated[bool, typer.Option("--candidate", help="It is one for review: nobody has signed it.")] = False,
    accept_one_signature: Annotated[
        bool, typer.Option("--accept-one-signature", help="One person's is enough, where the coordinator's rule is so.")
    ] = False,
) -> None:
    """Check signatures, digests and evidence of a release folder, and who released it; needs no connection."""
    standing = Standing.ONE_SIGNATURE if accept_one_signature else Standing.RELEASE
    _show_verified(context, folder, key=key, standing=Standing.CANDIDATE if candidate else standing)


def _download(client: RestClient, path: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "release.zip"
        client.download(path, archive)
        unpack_release(archive, folder)


def _show_verified(context: typer.Context, folder: Path, *, key: str | None, standing: Standing) -> str:
    """Verify, tell, and give the manifest's digest."""
    shell = shell_of(context)
    verified = verify_release_folder(folder, expected_key_sha256=key, standing=standing)
    facts = {
        "release_dir": str(folder),
        "verified": True,
        "is_released": bool(verified.signatures),
        "release_id": verified.manifest.get("release_id"),
        "files": verified.n_files,
        "manifest_sha256": verified.manifest_sha256,
        "key_sha256": verified.key_sha256,
        "site_approvals": verified.evidence.n_site_approvals,
        "rounds": verified.evidence.n_rounds,
        "receipts": verified.evidence.n_receipts,
        "acknowledgements": verified.evidence.n_acknowledgements,
        "signatures": [
            {
                "user": one.user,
                "role": one.role,
                "meaning": one.meaning,
                "at": one.at,
                "authenticated_by": one.authenticated_by,
                "authenticated_since": one.authenticated_since,
                "marks": list(one.marks),
            }
            for one in verified.signatures
        ],
    }
    names = (
        ("folder", "release_dir"),
        ("release", "release_id"),
        ("files", "files"),
        ("manifest", "manifest_sha256"),
        ("signed by key", "key_sha256"),
        ("approvals of sites", "site_approvals"),
        ("rounds", "rounds"),
        ("acknowledgements", "acknowledgements"),
    )
    shell.show_facts(facts, names)
    for one in verified.signatures:
        shell.say(f'Released by {one.user} as {one.role} on {one.at}: "{one.meaning}"')
        for mark in one.marks:
            shell.say(f"  who knew then: {mark}")
    _say_what_holds(shell, n_signatures=len(verified.signatures), is_key_known=key is not None)
    return verified.manifest_sha256


def _say_what_holds(shell: Shell, *, n_signatures: int, is_key_known: bool) -> None:
    if n_signatures == 1:
        shell.say("ONE person released this: the coordinator's rule asked for one signature only.")
    if is_key_known:
        shell.say("Every signature, the expected key's too, every digest and the evidence hold.")
    else:
        shell.say(
            "Every signature, every digest and the evidence hold. Compare the key's fingerprint with the coordinator's "
            "operator, and repeat with --key."
        )


def _told(release: Document) -> Mapping[str, object]:
    """The release, with its signatures and marks as sentences beside."""
    signatures = [
        f'{text_of(one, "user")} as {text_of(one, "role")}: "{text_of(one, "meaning")}"'
        for one in documents_of(release, "signatures")
    ]
    marks = [_mark(mark) for mark in documents_of(release, "marks")]
    lineage = {"parents": list(texts_of(release, "parents")), "descendants": list(texts_of(release, "descendants"))}
    return {**release, **lineage, "signed_by": signatures, "marked_by": marks}


def _mark(mark: Document) -> str:
    return f"{text_of(mark, 'kind')} {text_of(mark, 'cause')} ({text_of(mark, 'reason')})"
