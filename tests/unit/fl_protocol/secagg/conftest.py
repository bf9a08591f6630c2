"""The scene of most attacks: an exchange among five sites."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fl_protocol.testing.federation import Federation, small_layout
from fl_protocol.testing.scene import Scene
from fl_protocol.testing.strategies import site_names


@pytest.fixture
def new_scene() -> Callable[..., Scene]:
    def build(n: int = 5, *, federation: Federation | None = None, exchange_attempt: int = 0) -> Scene:
        federation = federation or Federation(site_names(n), small_layout())
        opened = federation.open_exchange(exchange_attempt=exchange_attempt)
        roles = {site: federation.open_role(site, opened) for site in federation.site_ids}
        return Scene(federation=federation, opened=opened, roles=roles)

    return build


@pytest.fixture
def scene(new_scene: Callable[..., Scene]) -> Scene:
    return new_scene()
