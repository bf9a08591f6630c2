"""``wardround login`` and ``wardround whoami``: which coordinator, and as whom."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Annotated, TextIO

import httpx
import typer
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from wardround.cli.shell import shell_of
from wardround.client.connection import Connection, ProfileFolder, read_token
from wardround.client.rest import TIMEOUT_S, RestClient
from wardround.errors import EvidenceFaultError, UnavailableError, UsageInvalidError

_FACTS = (("user", "name"), ("roles", "roles"), ("scopes", "scopes"), ("coordinator", "url"))


def login(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="The coordinator's address, https://HOST:PORT.", metavar="URL")],
    root: Annotated[
        Path | None, typer.Option("--root", help="Its root certificate (root.pem), from its operator.")
    ] = None,
    root_fingerprint: Annotated[
        str | None, typer.Option("--root-fingerprint", help="Instead of --root: the SHA-256 that the root must have.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="The file that holds your token; else it is read from the standard input."),
    ] = None,
) -> None:
    """Remember a coordinator and your token on this account, after both were tried."""
    shell = shell_of(context)
    url = url.rstrip("/")
    pem = _root_pem(url, root=root, fingerprint=root_fingerprint)
    token = read_token(token_file) if token_file is not None else ask_for_token(sys.stdin)
    folder = ProfileFolder.of_user(shell.environment)
    folder.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    trial = folder.root / "root.pem.trial"
    trial.write_bytes(pem)
    try:
        with RestClient(Connection(url=url, root_file=trial, token=token)) as client:
            me = client.get("/api/v1/me")
    finally:
        trial.unlink(missing_ok=True)
    folder.save(url=url, token=token, root_pem=pem)
    shell.show_facts({**me, "url": url}, _FACTS)


def ask_for_token(source: TextIO) -> str:
    """The token that a person types where it is not shown, or that a file or a program gives to the standard input.

    Raises:
        UsageInvalidError: nothing arrived.
    """
    if source.isatty():
        return str(typer.prompt("Token", hide_input=True, err=True))
    # A prompt would ask the terminal, whatever `login < admin.token` names.
    token = source.readline().strip()
    if not token:
        raise UsageInvalidError(
            "no token arrived on the standard input", advice="Give it by '< FILE' or by --token-file FILE."
        )
    return token


def whoami(context: typer.Context) -> None:
    """Show who you are to the coordinator, and your roles."""
    shell = shell_of(context)
    with shell.connect() as client:
        shell.show_facts({**client.get("/api/v1/me"), "url": client.url}, _FACTS)


def _root_pem(url: str, *, root: Path | None, fingerprint: str | None) -> bytes:
    if (root is None) == (fingerprint is None):
        raise UsageInvalidError(
            "name the root certificate (--root FILE) or its fingerprint (--root-fingerprint SHA256)",
            advice="'wardround-coordinator init' wrote root.pem and printed its fingerprint.",
        )
    if root is not None:
        try:
            return root.read_bytes()
        except OSError as error:
            raise UsageInvalidError(f"the root certificate {root} cannot be read") from error
    assert fingerprint is not None
    return fetch_root(url, expected_sha256=fingerprint)


def fetch_root(url: str, *, expected_sha256: str, transport: httpx.BaseTransport | None = None) -> bytes:
    """Fetch the root certificate over a connection that is not trusted, and keep it only if its fingerprint is right.

    Raises:
        UnavailableError: nobody answers.
        EvidenceFaultError: the certificate has another fingerprint.
    """
    # Safety: no token travels on this connection, and nothing of the answer is used but a certificate with this digest.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        with httpx.Client(verify=unverified, transport=transport, trust_env=False, timeout=TIMEOUT_S) as http:
            pem = http.get(f"{url}/api/v1/ca/root").raise_for_status().content
        # Only this one is kept: whoever stands between could put a root of his own behind it.
        root = x509.load_pem_x509_certificate(pem)
        found = root.fingerprint(SHA256()).hex()
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{url} does not give its root certificate ({error})", advice="Check the address."
        ) from error
    except ValueError as error:
        raise EvidenceFaultError(f"{url} answered with something that is no certificate") from error
    if found != expected_sha256.lower().replace(":", ""):
        advice = "Ask the coordinator's operator for the fingerprint again; somebody may stand between you."
        raise EvidenceFaultError("the root certificate has another fingerprint", advice=advice, root_sha256=found)
    return root.public_bytes(Encoding.PEM)
