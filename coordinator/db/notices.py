"""What the processes of one PostgreSQL tell each other: that something was committed, never what.

A notice is sent right after its commit (NOTIFY, by the pool's connections) and heard over a connection that does
nothing else (LISTEN, asyncpg). It may be lost, with its sender or with a connection: everybody also looks by himself,
and whoever reconnects looks at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
from collections.abc import Callable

import asyncpg
import structlog
from sqlalchemy import text
from sqlalchemy.engine import make_url

from coordinator.db.faults import fault_of, said_by
from coordinator.db.tx import Database

CHANNEL = "wardround"
_CONNECT_TIMEOUT_S = 5.0
_HEARTBEAT_S = 15.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 3.0

_log = structlog.get_logger("coordinator.db")


class NoticeBoard:
    """Sends this process's notices and hears those of the others. One a process."""

    def __init__(
        self,
        database: Database,
        *,
        url: str,
        hear: Callable[[str], None],
        known: frozenset[str],
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """Take what to send by, whom to listen to and whom to tell.

        Args:
            database: a server's.
            url: its address, with the password.
            hear: called in the event loop with a notice of another process.
            known: every notice there is; after a pause in listening each of them is heard once.
            trust: whom to believe as the server; None takes TLS where it is offered.
        """
        self._database = database
        self._url = make_url(url)
        self._hear = hear
        self._known = known
        self._trust = trust
        self._me = secrets.token_hex(8)
        self._unsent: set[str] = set()
        self._has_unsent = asyncio.Event()
        self.is_listening = asyncio.Event()

    def post(self, notice: str) -> None:
        """Have the others told, soon. The same notice again before it is sent is one. Call it in the loop's thread."""
        self._unsent.add(notice)
        self._has_unsent.set()

    async def run(self) -> None:
        """Send and listen until cancelled; connections that break are replaced."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name="notices-out")
            group.create_task(self._listen(), name="notices-in")

    async def _send(self) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            notices, self._unsent = self._unsent, set()
            try:
                await asyncio.to_thread(self._notify, sorted(notices))
            except Exception as error:  # noqa: BLE001 # a lost notice costs a moment: whoever waits looks by himself
                _log.warning("notice_not_sent", fault=fault_of(error).value, error=said_by(error))

    def _notify(self, notices: list[str]) -> None:
        with self._database.engine.begin() as connection:
            for notice in notices:
                said = {"channel": CHANNEL, "said": f"{self._me}:{notice}"}
                connection.execute(text("SELECT pg_notify(:channel, :said)"), said)

    async def _listen(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    connection = await self._connect()
                try:
                    pause_s = _FIRST_PAUSE_S
                    await self._hold(connection)
                finally:
                    self.is_listening.clear()
                    connection.terminate()
            except Exception as error:  # noqa: BLE001 # whatever breaks listening, nobody depends on it
                _log.warning("listening_interrupted", error=said_by(error), again_in_s=round(pause_s, 1))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 # spreads the replicas' attempts
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        url = self._url
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            host=url.host,
            port=url.port or 5432,
            user=url.username,
            password=url.password,
            database=url.database,
            timeout=_CONNECT_TIMEOUT_S,
            ssl=self._trust or "prefer",
            server_settings={"application_name": "wardround-listener"},
        )
        return connection

    async def _hold(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        is_over = asyncio.Event()
        connection.add_termination_listener(lambda _: is_over.set())
        await connection.add_listener(CHANNEL, self._on_notice)
        self.is_listening.set()
        # What was said while nobody listened is looked for.
        for notice in sorted(self._known):
            self._hear(notice)
        while not is_over.is_set():
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    await is_over.wait()
            except TimeoutError:
                await connection.fetchval("SELECT 1", timeout=_HEARTBEAT_S)

    def _on_notice(self, connection: object, process_id: int, channel: str, said: object) -> None:
        del connection, process_id, channel
        sender, _, notice = str(said).partition(":")
        if sender != self._me and notice in self._known:
            self._hear(notice)
