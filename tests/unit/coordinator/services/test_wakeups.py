from __future__ import annotations

import asyncio

import pytest

from coordinator.services.poll_instruction import pause_before_looking_again_s
from coordinator.services.wakeups import Bell


async def test_bell_counts_who_waits_and_forgets_whoever_stops_waiting() -> None:
    bell = Bell()
    waiting = [asyncio.create_task(bell.wait(bell.count, timeout_s=60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert bell.n_waiting == 3
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert bell.n_waiting == 2
    bell.ring()
    assert await asyncio.gather(*waiting[1:]) == [True, True]
    assert bell.n_waiting == 0


async def test_bell_that_rang_since_does_not_wait() -> None:
    bell = Bell()
    seen = bell.count
    bell.ring()
    assert await bell.wait(seen, timeout_s=60)
    assert not await bell.wait(bell.count, timeout_s=0.0)
    assert bell.n_waiting == 0


@pytest.mark.parametrize(("n_waiting", "pause_s"), [(0, 2.0), (50, 2.0), (100, 4.0), (200, 8.0)])
def test_idle_sites_look_twenty_five_times_a_second_together_at_most(n_waiting: int, pause_s: float) -> None:
    assert pause_before_looking_again_s(n_waiting) == pause_s


@pytest.mark.parametrize("n_turns", range(6))
async def test_wait_cancelled_as_the_bell_rings_ends(n_turns: int) -> None:
    """A stop may come at any turn of the loop after a ring: whoever waits over and over must hear it."""
    bell = Bell()

    async def wait_over_and_over() -> None:
        while True:
            await bell.wait(bell.count, timeout_s=60)

    waiting = asyncio.create_task(wait_over_and_over())
    await asyncio.sleep(0)
    bell.ring()
    for _ in range(n_turns):
        await asyncio.sleep(0)
    waiting.cancel()
    _, pending = await asyncio.wait([waiting], timeout=1)
    heard = not pending
    waiting.cancel()
    assert heard
