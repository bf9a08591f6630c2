"""A real PostgreSQL of a test's own: one data directory, one free port on loopback, ended by its own process id.

    server = PostgresServer.create()   # initdb, start, one database `wardround`; about a second
    server.url                         # postgresql+pg8000://wardround@127.0.0.1:PORT/wardround
    server.restart()                   # connections break, nothing committed is lost
    server.dispose()                   # in the end, always

Nothing is flushed to the disk itself (`fsync = off`): a killed server loses nothing that it acknowledged, a cut of
power would.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pg8000.native

from tests.support.tools import tool

USER = "wardround"
DATABASE = "wardround"
_OWNER = "postgres"
_START_TIMEOUT_S = "60"
_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "16MB",
    "listen_addresses": "'127.0.0.1'",
    # A client that does not answer must not keep a stopped server waiting.
    "tcp_keepalives_idle": "5",
}


class PostgresServer:
    """One PostgreSQL server. Invariant: between ``create`` and ``dispose`` its files are its own and nobody else's."""

    def __init__(self, home: Path, *, port: int, password: str | None) -> None:
        """Take what ``create`` made."""
        self._home = home
        self.port = port
        self.password = password

    @classmethod
    def create(cls, *, password: str | None = None) -> PostgresServer:
        """Initialise and start a server with an empty database.

        Args:
            password: what the role `wardround` must show (scram-sha-256); None trusts everybody on loopback.
        """
        initdb = tool("initdb")
        # PostgreSQL refuses root, and its own user may not enter another's temporary folders.
        home = Path(tempfile.mkdtemp(prefix="wardround-postgres-"))
        home.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(home, _OWNER, _OWNER)
        server = cls(home, port=_free_port(), password=password)
        try:
            server._initialise(initdb)
            server.start()
            server.create_database(DATABASE)
        except BaseException:
            server.dispose()
            raise
        return server

    @property
    def url(self) -> str:
        """The address of the first database, without the password: that comes from a file, or from ``url_for``."""
        return f"postgresql+pg8000://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def url_for(self, database: str) -> str:
        """The whole address of a database, with the password where there is one."""
        secret = "" if self.password is None else f":{self.password}"
        return f"postgresql+pg8000://{USER}{secret}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str | None = None, *, template: str = "template0") -> str:
        """Make a database, empty or a copy of ``template`` (to which nobody may be connected); returns its name."""
        made = name or f"db_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{made}" TEMPLATE "{template}"', database="postgres")
        return made

    def drop_database(self, name: str) -> None:
        """Remove a database and its files, whoever is connected to it."""
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)', database="postgres")

    def execute(self, statement: str, *, database: str = DATABASE) -> list[list[object]]:
        """Run one statement outside any transaction, over a connection of its own."""
        connection = pg8000.native.Connection(
            USER, host="127.0.0.1", port=self.port, database=database, password=self.password, timeout=30
        )
        try:
            return list(connection.run(statement) or [])
        finally:
            connection.close()

    def terminate_connections(self, database: str = DATABASE) -> int:
        """Break every connection to a database, as a fail-over does; returns how many there were."""
        rows = self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'", database="postgres"
        )
        return len(rows)

    @property
    def process_id(self) -> int | None:
        """Of the running server; None while it is stopped."""
        try:
            return int((self._data / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError):
            return None

    def start(self) -> None:
        """Start, on the same port, and wait until it answers."""
        log = self._home / "log"
        # pg_ctl's descendants would hold a pipe open for as long as the server lives.
        self._run(tool("pg_ctl"), "-D", str(self._data), "-l", str(log), "-w", "-t", _START_TIMEOUT_S, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop: `immediate` breaks every connection at once, `fast` rolls transactions back first."""
        if self.process_id is not None:
            self._run(tool("pg_ctl"), "-D", str(self._data), "-m", mode, "-w", "-t", _START_TIMEOUT_S, "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop and start again; every connection is broken, every committed row is kept."""
        self.stop(mode)
        self.start()

    def serve_tls(self, *, certificate_pem: bytes, key_pem: bytes) -> None:
        """Offer TLS from now on; clients may still go without."""
        for name, content in (("server.crt", certificate_pem), ("server.key", key_pem)):
            path = self._data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if os.geteuid() == 0:
                shutil.chown(path, _OWNER, _OWNER)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\n")
        self.restart()

    def dispose(self) -> None:
        """End the server and remove its files."""
        try:
            self.stop()
        except subprocess.CalledProcessError:
            left = self.process_id
            if left is not None:
                os.kill(left, signal.SIGQUIT)
        shutil.rmtree(self._home, ignore_errors=True)

    @property
    def log(self) -> str:
        """What the server said, for a failed test."""
        path = self._home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _initialise(self, initdb: Path) -> None:
        method = "trust" if self.password is None else "scram-sha-256"
        secret = self._home / "password"
        secret.write_text(f"{self.password or 'unused'}\n")
        secret.chmod(0o644)
        self._run(
            initdb, "-D", str(self._data), "-U", USER, "-A", method, "--pwfile", str(secret), "-E", "UTF8", "--no-sync"
        )
        secret.unlink()
        configuration = {**_SETTINGS, "port": str(self.port), "unix_socket_directories": f"'{self._home}'"}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = {value}\n" for key, value in configuration.items())

    def _run(self, program: Path, *arguments: str) -> None:
        command = [str(program), *arguments]
        if os.geteuid() == 0:
            pwd.getpwnam(_OWNER)
            command = [str(tool("runuser")), "-u", _OWNER, "--", *command]
        with (self._home / "commands").open("ab") as said:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd="/")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
