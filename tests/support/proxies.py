"""A real squid as a hospital has it: CONNECT to one port and nothing else, with or without Basic credentials."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import tool

_START_S = 20.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Squid:
    """A running squid."""

    port: int
    host: str
    log: Path
    pid: int

    @property
    def url(self) -> str:
        """How ``https_proxy`` and the setting name it."""
        return f"http://{self.host}:{self.port}"

    def requests(self) -> list[str]:
        """The access log: one line a request, written when the request has ended."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@contextlib.contextmanager
def squid(
    folder: Path,
    *,
    connect_ports: tuple[int, ...],
    credentials: str | None = None,
    host: str = "127.0.0.1",
    netns: str | None = None,
) -> Iterator[Squid]:
    """Start squid, and end it.

    Args:
        folder: an empty folder of the test's; configuration, log and pid file lie there.
        connect_ports: the only ports that CONNECT reaches. Nothing else is allowed, plain HTTP included.
        credentials: user:password for Basic authentication; None asks for none.
        host: where it listens, on a free port.
        netns: the network namespace to run it in.
    """
    program = tool("squid")
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port() if netns is None else 3128
    config = folder / "squid.conf"
    config.write_text(
        _configuration(folder, port=port, host=host, connect_ports=connect_ports, credentials=credentials)
    )
    if os.geteuid() == 0:
        # As root, squid works as its own user, who must reach its folder.
        _let_in(folder)
    inside = [] if netns is None else ["ip", "netns", "exec", netns]
    output = (folder / "output").open("wb")
    process = subprocess.Popen(
        [*inside, str(program), "-N", "-f", str(config)], stdout=output, stderr=subprocess.STDOUT
    )
    output.close()
    try:
        _wait_until_up(process, folder, host=host, port=port, probe=netns is None)
        yield Squid(port=port, host=host, log=folder / "access.log", pid=process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)


def _configuration(
    folder: Path, *, port: int, host: str, connect_ports: tuple[int, ...], credentials: str | None
) -> str:
    allowed = " ".join(map(str, connect_ports))
    authentication, permitted = "", "http_access allow CONNECT allowed_ports"
    if credentials is not None:
        user, _, password = credentials.partition(":")
        passwords = folder / "passwords"
        hashed = subprocess.run(
            [tool("openssl"), "passwd", "-apr1", "-stdin"],
            input=password.encode(),
            capture_output=True,
            check=True,
        ).stdout.decode()
        passwords.write_text(f"{user}:{hashed.strip()}\n")
        helper = Path("/usr/lib/squid/basic_ncsa_auth")
        authentication = (
            f"auth_param basic program {helper} {passwords}\n"
            "auth_param basic children 1\n"
            "auth_param basic realm hospital\n"
            "acl known proxy_auth REQUIRED\n"
        )
        permitted = "http_access allow CONNECT allowed_ports known"
    return (
        f"http_port {host}:{port}\n"
        f"acl allowed_ports port {allowed}\n"
        f"{authentication}"
        "http_access deny !allowed_ports\n"
        "http_access deny !CONNECT\n"
        f"{permitted}\n"
        "http_access deny all\n"
        "cache deny all\n"
        f"access_log stdio:{folder}/access.log\n"
        "buffered_logs off\n"
        f"cache_log {folder}/cache.log\n"
        f"pid_filename {folder}/squid.pid\n"
        f"coredump_dir {folder}\n"
        "shutdown_lifetime 0 seconds\n"
        "visible_hostname hospital-proxy\n"
        "pinger_enable off\n"
    )


def _let_in(folder: Path) -> None:
    folder.chmod(0o777)
    for file in folder.iterdir():
        file.chmod(0o644)
    # pytest's folders are 0700; squid's user has to walk through them and sees nothing of what is in them.
    # All of them: another pytest that starts meanwhile closes the outermost one again.
    for parent in folder.parents:
        mode = parent.stat().st_mode & 0o7777
        if not mode & 0o001:
            parent.chmod(mode | 0o011)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(process: subprocess.Popen[bytes], folder: Path, *, host: str, port: int, probe: bool) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, (folder / "output").read_text()
        assert time.monotonic() < deadline, "squid did not start"
        if probe:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
                return
        elif (folder / "squid.pid").exists():
            return
        time.sleep(0.05)
