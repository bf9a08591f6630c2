"""Commands of the built-in certificate authority.

A command imports what it needs when it runs, so that ``--help`` needs no server to be loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.console import DEFAULT_CONFIG, Config, answer, reported
from fl_protocol.clock import SystemClock

ca_cli = typer.Typer(help="The built-in certificate authority.", no_args_is_help=True)


@ca_cli.command(name="show")
@reported
def show_ca(config: Config = DEFAULT_CONFIG) -> None:
    """Show the roots and where their rotation stands, and the signing keys' fingerprints.

    Example: wardround-coordinator ca show
    """
    from coordinator.cli.ca_answers import show_answer

    answer(*show_answer(config, clock=SystemClock()))


@ca_cli.command(name="rotate")
@reported
def rotate_ca(
    config: Config = DEFAULT_CONFIG,
    *,
    is_hurried: Annotated[
        bool, typer.Option("--without-waiting", help="Cut off sites that are not ready; they recover by themselves.")
    ] = False,
) -> None:
    """Take the next step to another root: prepare it, issue under it, retire the last one. Give it three times.

    Example: wardround-coordinator ca rotate
    """
    from coordinator.cli.ca_answers import rotate_answer

    answer(*rotate_answer(config, is_hurried=is_hurried, clock=SystemClock()))


@ca_cli.command(name="csr")
@reported
def make_ca_csr(
    file: Annotated[Path, typer.Argument(help="Where to write the request; must not exist.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Make an issuing key and the request that an offline root is to sign.

    Example: wardround-coordinator ca csr issuer.csr
    """
    from coordinator.cli.ca_answers import csr_answer

    answer(*csr_answer(config, file))


@ca_cli.command(name="install")
@reported
def install_issuer(
    file: Annotated[Path, typer.Argument(help="What `ca sign` wrote: the issuer's certificate and its root.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Make what an offline root signed the next issuer; `ca rotate` goes on from there.

    Example: wardround-coordinator ca install issuer.pem
    """
    from coordinator.cli.ca_answers import install_answer

    answer(*install_answer(config, file, clock=SystemClock()))


@ca_cli.command(name="offline-root")
@reported
def make_offline_root(
    folder: Annotated[Path, typer.Argument(help="Where to write key and certificate, on a machine without network.")],
    consortium: Annotated[str, typer.Option(help="The name in the root certificate.")] = "Wardround consortium",
) -> None:
    """Make a root whose key never sees the coordinator.

    Example: wardround-coordinator ca offline-root ./root --consortium "Rare disease network"
    """
    from coordinator.cli.ca_answers import offline_root_answer

    answer(*offline_root_answer(folder, consortium=consortium, clock=SystemClock()))


@ca_cli.command(name="sign")
@reported
def sign_issuer(
    folder: Annotated[Path, typer.Argument(help="The folder of the offline root.")],
    csr: Annotated[Path, typer.Argument(help="The request that `ca csr` wrote.")],
    file: Annotated[Path, typer.Argument(help="Where to write the certificates; must not exist.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it may issue.")] = 730,
) -> None:
    """Sign an issuer's request with an offline root.

    Example: wardround-coordinator ca sign ./root issuer.csr issuer.pem
    """
    from coordinator.cli.ca_answers import sign_answer

    answer(*sign_answer(folder, csr, file, days=days, clock=SystemClock()))


@ca_cli.command(name="export-root")
@reported
def export_root(config: Config = DEFAULT_CONFIG) -> None:
    """Print the root certificate, PEM; while it is replaced, both, the issuing one first.

    Example: wardround-coordinator ca export-root > root.pem
    """
    from coordinator.installation import ROOT_CERTIFICATE, open_installation

    installation = open_installation(config)
    authority = installation.load_keys().authority
    pem = authority.trusted_pem.decode()
    path = installation.directory / ROOT_CERTIFICATE
    answer({"root_pem": pem, "root_sha256": authority.root_sha256, "path": str(path)}, [pem.rstrip()])
