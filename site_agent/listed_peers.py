"""The peers that ``site.yaml`` lists now: one that is added or removed counts from the next question on.

A composition, like ``runners``: it reads the settings, for rooms that get plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import structlog

from site_agent.settings import SettingsInvalidError, load_settings

log = structlog.get_logger(__name__)

Peers = Callable[[], Mapping[str, str]]
"""Site name to SHA-256 of its signing key, as the hospital compared them out of band; asked anew each time."""


class ListedPeers:
    """Reads one ``site.yaml``. While it is broken or gone nobody is listed, so that nothing is approved by itself."""

    def __init__(self, state_dir: Path) -> None:
        """Nothing is read yet."""
        self._state_dir = state_dir
        self._fault = ""

    def __call__(self) -> Mapping[str, str]:
        """The peers of this moment. Blocks on the disk."""
        try:
            peers = load_settings(self._state_dir).peers
        except SettingsInvalidError as error:
            if str(error) != self._fault:
                self._fault = str(error)
                log.warning("peers_unreadable", cause=str(error))
            return MappingProxyType({})
        self._fault = ""
        return peers
