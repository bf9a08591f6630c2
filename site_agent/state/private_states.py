"""What a run's local rule keeps at this site from round to round: SCAFFOLD's control variate. Never leaves the site.

A round's trainer leaves a new one, which is only offered: it becomes the next round's where the published sum counted
this site's M5, and is thrown away otherwise, so that the server's control variate stays the mean of the sites' own. The
offer is on the disk before the site says that it is ready, and is decided over before the folded state is saved. So a
death between any two steps loses nothing: what is done again finds the same files, or finds it done.

Safety: a private state tells as much as the updates it was made of. Mode 0600, and deleted with the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from fl_protocol.ids import RunId
from fl_protocol.spec.context import RoundContext
from site_agent.state.private_files import make_private_folder, sync_folder, write_private_file

_CURRENT = "current.safetensors"
_OFFERED = "offered-{}.{}.safetensors"


class PrivateStates:
    """The private states of all runs. All methods block on the disk: call them in a thread."""

    def __init__(self, root: Path) -> None:
        """Keep the files under ``root``, one folder a run."""
        self._root = root

    def current(self, run_id: RunId) -> bytes | None:
        """What the last round that counted this site left; None before it, and for a rule that keeps nothing."""
        try:
            return (self._root / run_id / _CURRENT).read_bytes()
        except FileNotFoundError:
            return None

    def offer(self, round_context: RoundContext, data: bytes) -> None:
        """Keep what a round's trainer left until it is known whether the round counts this site.

        Raises:
            SiteDiskFullError: no room.
        """
        folder = self._root / round_context.run_id
        make_private_folder(folder)
        write_private_file(folder / self._offered(round_context), [data])

    def decide(self, round_context: RoundContext, *, is_counted: bool) -> None:
        """Take the round's offer as the current state, or not; older offers go either way. Again, it does nothing."""
        folder = self._root / round_context.run_id
        if not folder.exists():
            return
        offered = folder / self._offered(round_context)
        if is_counted and offered.exists():
            offered.replace(folder / _CURRENT)
        for path in folder.glob(_OFFERED.format("*", "*")):
            if int(path.name.removeprefix("offered-").split(".")[0]) <= round_context.round_index:
                path.unlink()
        sync_folder(folder)

    def forget(self, run_id: RunId) -> None:
        """Delete everything of a run that is over."""
        shutil.rmtree(self._root / run_id, ignore_errors=True)

    def forget_all_but(self, run_ids: Collection[RunId]) -> None:
        """Delete everything of all other runs."""
        if self._root.exists():
            for folder in self._root.iterdir():
                if folder.name not in run_ids:
                    shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _offered(round_context: RoundContext) -> str:
        return _OFFERED.format(round_context.round_index, round_context.round_attempt)
