"""Takes up a change of the authority's slots while the coordinator serves. Part of the composition root.

The file is looked at every second: whoever runs ``ca rotate`` on any host that shares the folder of keys is heard. What
cannot be read is said in the log, and the process goes on with what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from coordinator.ca.authority import CertificateAuthority
from coordinator.ca.slot_files import SlotFiles
from fl_protocol.errors import WardroundError

_log = structlog.get_logger("coordinator.app")

_LOOK_EVERY_S = 1.0


class AuthorityWatch:
    """Watches one folder of keys."""

    def __init__(
        self, authority: CertificateAuthority, files: SlotFiles, *, refresh: Sequence[Callable[[], object]]
    ) -> None:
        """Take what is told of a change: the listeners that do not ask by themselves."""
        self._authority = authority
        self._files = files
        self._refresh = tuple(refresh)
        self._seen = self._stamp()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Adopt the slots where the file is another one than before; and let listeners renew what grows old."""
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                slots = self._files.load()
            except WardroundError as error:
                _log.error("authority_not_taken_up", code=error.code, cause=str(error))
                self._seen = stamp
                return
            self._seen = stamp
            self._authority.adopt(slots)
            _log.warning("authority_changed", root=self._authority.root_sha256, n_trusted=len(slots.trusted))
        for refresh in self._refresh:
            refresh()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._files.register_file.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino
