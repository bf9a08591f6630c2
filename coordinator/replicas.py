"""What a process does because it may be one of several.

It waits for their database, has a file of its own to say where it listens, compares the clocks, hears and is heard, and
tidies up what all of them leave behind. Part of the composition root.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog

from coordinator.db.commit_markers import forget_markers
from coordinator.db.migrate import is_current
from coordinator.db.notices import NoticeBoard
from coordinator.db.tx import Database
from coordinator.errors import DatabaseBusyError, DatabaseUnavailableError
from coordinator.installation import Installation
from coordinator.services.wakeups import Waiting
from fl_protocol.clock import Clock

_DATABASE_WAIT_S = 60.0
_DATABASE_PAUSE_S = 1.0
_HOUSEKEEPING_S = 600.0
_MARKERS_KEPT = timedelta(days=1)

_log = structlog.get_logger("coordinator.app")


async def is_database_current(database: Database) -> bool:
    """Whether it has this version's schema; a database that starts later than its users is waited for.

    Raises:
        DatabaseUnavailableError: it has not answered for a minute.
    """
    waited_s = 0.0
    while True:
        try:
            return await asyncio.to_thread(is_current, database.engine)
        except DatabaseUnavailableError as error:
            if waited_s >= _DATABASE_WAIT_S:
                raise
            _log.warning("waiting_for_database", error=error.facts.get("error"))
        await asyncio.sleep(_DATABASE_PAUSE_S)
        waited_s += _DATABASE_PAUSE_S


def notice_board(installation: Installation, database: Database, *, hear: Callable[[Waiting], None]) -> NoticeBoard:
    """This process's end of what the processes of one PostgreSQL tell each other."""
    return NoticeBoard(
        database,
        url=installation.database_url(),
        trust=installation.database_trust(),
        hear=lambda notice: hear(Waiting(notice)),
        known=frozenset(waiting.value for waiting in Waiting),
    )


async def keep_house(database: Database, *, clock: Clock, lease: timedelta) -> None:
    """Every ten minutes, for as long as the process lives: compare clocks, and forget old commit markers."""
    while True:
        try:
            offset = await asyncio.to_thread(clock_offset, database, clock=clock)
            if offset is not None and abs(offset) > lease / 3:
                # Nothing is lost by it; but a lease may be taken from a driver that is at work, and work done twice.
                _log.warning("clock_differs_from_database", seconds=round(offset.total_seconds(), 3))
            if database.is_server:
                before = clock.now() - _MARKERS_KEPT
                await database.run_tx_async("forget-markers", partial(forget_markers, before=before))
        except (DatabaseUnavailableError, DatabaseBusyError) as error:
            _log.warning("housekeeping_waits_for_database", code=error.code)
        await asyncio.sleep(_HOUSEKEEPING_S)


def clock_offset(database: Database, *, clock: Clock) -> timedelta | None:
    """How far this process's clock is ahead of the database's; None where there is one clock only."""
    before = clock.now()
    said = database.server_time()
    return None if said is None else before + (clock.now() - before) / 2 - said


def serve_file_for(installation: Installation, roles: Collection[str], *, all_roles: Collection[str]) -> Path:
    """Where this process says its addresses: ``serve.json``, or a file of its own where it is one of several."""
    if set(roles) == set(all_roles):
        return installation.serve_file
    return installation.directory / f"serve-{'-'.join(sorted(roles))}-{os.getpid()}.json"


def running_processes(installation: Installation) -> tuple[int, ...]:
    """The process ids of the coordinators of this folder that are alive on this machine."""
    found: list[int] = []
    for path in sorted(installation.directory.glob("serve*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            process_id = int(said["pid"])
            if said.get("machine", socket.gethostname()) != socket.gethostname():
                continue
            os.kill(process_id, 0)
        except PermissionError:
            found.append(process_id)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        else:
            found.append(process_id)
    return tuple(found)
