"""A hostile coordinator on the wire, and real agents; after every test what it heard is looked through for a leak."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from tests.support.gateway import Pki, running_gateway
from tests.support.hostile_coordinator import RoundWire, RunWire
from tests.support.hostile_federation import HostileFederation, HostileFederationOf


@pytest_asyncio.fixture
async def federation_of(tmp_path: Path) -> AsyncIterator[HostileFederationOf]:
    """Makes a federation: ``federation_of(n_sites=3, rounds=1)``."""
    rounds = RoundWire()
    runs = RunWire(rounds)
    made: list[HostileFederation] = []
    async with running_gateway(Pki(), rounds, runs=runs) as gateway:

        def make(**how: Any) -> HostileFederation:
            made.append(HostileFederation(tmp_path, gateway, runs, **how))
            return made[-1]

        yield make
    assert [leak for federation in made for leak in federation.leaks()] == []
