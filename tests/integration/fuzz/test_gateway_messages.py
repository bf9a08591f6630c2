"""Every call of every service, with what a broken or hostile site might send, against a whole coordinator.

Nothing crashes, hangs, leaks or answers with anything but a typed refusal, and whoever behaves is served after it.
The calls follow from fixed seeds. 10,000 in all, 100,000 where ``CI`` is set, or as many as ``WARDROUND_FUZZ_CALLS``
says.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from fl_protocol.wire.v1 import enrolment_pb2, errors_pb2, round_pb2, run_pb2
from tests.integration.fuzz.listening import MAX_GROWTH_BYTES, Coordinator, running, unexpected
from tests.integration.fuzz.mutations import ENROL, Method, Mutator, all_methods

pytestmark = [pytest.mark.timeout(900)]

N_CALLS = int(os.environ.get("WARDROUND_FUZZ_CALLS") or (100_000 if os.environ.get("CI") else 10_000))
CALL_TIMEOUT_S = 60.0
"""Far longer than the longest poll of this coordinator (half a second): whatever takes longer hangs."""
N_AT_ONCE = 64
N_ENROLMENTS_AT_ONCE = 16
"""Below what the enrolment listener takes at once; beyond that gRPC itself says no."""
WARM_UP = 0.2
NO_MESSAGE = "INVALID_ARGUMENT invalid-message"
REFUSAL = "wardround-refusal-bin"
TYPED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
SITE_METHODS = tuple(method for method in all_methods() if method.name != ENROL)
ENROLMENT_METHODS = tuple(method for method in all_methods() if method.name == ENROL)


CUT_WHILE_WRITING = "Internal error from Core"
"""What this side's gRPC says of a write to a call that is over. No server sends it."""


@dataclass
class Tally:
    """How calls ended, and those that ended as no call may."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, method: Method, parts: tuple[bytes, ...], error: grpc.aio.AioRpcError | None) -> None:
        if error is None:
            self.ends["OK"] += 1
            return
        code, metadata = error.code(), dict(error.trailing_metadata() or ())
        refusal = metadata.get(REFUSAL)
        is_typed = code in TYPED and isinstance(refusal, bytes) and errors_pb2.Refusal.FromString(refusal).code
        self.ends[f"{code.name} {errors_pb2.Refusal.FromString(refusal).code}" if is_typed else code.name] += 1
        if not is_typed and len(self.wrong) < 20:
            sent = ", ".join(part[:60].hex() + ("..." if len(part) > 60 else "") for part in parts)
            self.wrong.append(f"{method.name}: {code.name}: {error.details()} after {sent}")


async def call(
    channel: grpc.aio.Channel, method: Method, parts: tuple[bytes, ...], tally: Tally, *, n_again: int = 5
) -> None:
    """One call in bytes: nothing here reads or writes a message."""
    try:
        if method.is_upload:
            await channel.stream_unary(method.path)(iter(parts), timeout=CALL_TIMEOUT_S)
        elif method.is_download:
            async for _ in channel.unary_stream(method.path)(parts[0] if parts else b"", timeout=CALL_TIMEOUT_S):
                pass
        else:
            await channel.unary_unary(method.path)(parts[0] if parts else b"", timeout=CALL_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        # A stream that is refused while it is still written to can lose the server's answer in the client's own library
        # (a few of 100,000, under load): the same bytes are said again until the server's word is heard.
        if method.is_upload and error.details() == CUT_WHILE_WRITING and n_again:
            await call(channel, method, parts, tally, n_again=n_again - 1)
            return
        tally.note(method, parts, error)
    else:
        tally.note(method, parts, None)


async def say_all(
    channel: grpc.aio.Channel, calls: Iterator[tuple[Method, tuple[bytes, ...]]], *, n_at_once: int
) -> Tally:
    tally = Tally()

    async def worker() -> None:
        for method, parts in calls:
            await call(channel, method, parts, tally)

    await asyncio.gather(*(worker() for _ in range(n_at_once)))
    return tally


async def fuzz(
    coordinator: Coordinator,
    channel: grpc.aio.Channel,
    methods: tuple[Method, ...],
    *,
    n_calls: int,
    seed: int,
    n_at_once: int = N_AT_ONCE,
) -> Tally:
    """Send them all; the memory is looked at once everything that is made once was made, and again at the end."""
    mutator = Mutator(seed, methods)
    n_warm_up = int(n_calls * WARM_UP)
    first = await say_all(channel, mutator.calls(n_warm_up), n_at_once=n_at_once)
    before = coordinator.rss_bytes()
    rest = await say_all(channel, mutator.calls(n_calls - n_warm_up), n_at_once=n_at_once)
    grown = coordinator.rss_bytes() - before
    tally = Tally(ends=first.ends + rest.ends, wrong=first.wrong + rest.wrong)
    log = coordinator.log.read_text(errors="replace")
    assert not tally.wrong, "\n".join([*tally.wrong, *unexpected(log)])
    assert "call_failed_unexpectedly" not in log, "\n".join(unexpected(log))
    assert sum(tally.ends.values()) == n_calls
    assert coordinator.process.poll() is None
    assert grown < MAX_GROWTH_BYTES, f"{grown >> 20} MiB more after {n_calls - n_warm_up} calls"
    return tally


@pytest.mark.parametrize(("snapshot", "seed"), [("round-0-opened", 20260301), ("upload-half-way", 20260302)], ids=str)
async def test_site_that_says_anything_at_all_gets_typed_refusals_and_others_are_served(
    tmp_path: Path, snapshot: str, seed: int
) -> None:
    with running(tmp_path / "coordinator", snapshot) as coordinator:
        async with coordinator.channel("a-site") as channel:
            tally = await fuzz(coordinator, channel, SITE_METHODS, n_calls=int(N_CALLS * 0.45), seed=seed)
        # Something got as far as the services, and something was read as no message at all.
        assert {NO_MESSAGE, "INVALID_ARGUMENT statement-invalid", "OK"} <= set(tally.ends)
        async with coordinator.channel("d-site") as channel:
            poll = round_pb2.PollAssignmentRequest(wait_s=0.0).SerializeToString()
            answer = await channel.unary_unary("/fl_protocol.wire.v1.RoundService/PollAssignment")(poll, timeout=20)
            assert round_pb2.PollAssignmentResponse.FromString(answer).WhichOneof("instruction") is not None
            pending = await channel.unary_unary("/fl_protocol.wire.v1.RunService/ListPending")(b"", timeout=20)
            run_pb2.ListPendingResponse.FromString(pending)


async def test_stranger_at_the_enrolment_listener_gets_typed_refusals_and_a_site_enrols_after(tmp_path: Path) -> None:
    with running(tmp_path / "coordinator", "set-up") as coordinator:
        (method,) = ENROLMENT_METHODS
        honest = method.seeds[0][0]
        # A code is spent by the first keys that bring it: the honest site's is kept out of the fuzz.
        others = Method(**{**vars(method), "seeds": method.seeds[1:]})
        async with coordinator.enrolment_channel() as channel:
            tally = await fuzz(
                coordinator,
                channel,
                (others,),
                n_calls=N_CALLS // 10,
                seed=20260303,
                n_at_once=N_ENROLMENTS_AT_ONCE,
            )
            assert {NO_MESSAGE, "UNAUTHENTICATED enrolment-code-unknown"} <= set(tally.ends)
            answer = await channel.unary_unary(method.path)(honest, timeout=20)
        assert enrolment_pb2.EnrolResponse.FromString(answer).certificate_pem


def test_every_method_of_every_service_is_called_with_a_message_of_its_own() -> None:
    assert len(SITE_METHODS) + len(ENROLMENT_METHODS) == len(all_methods())
    for method in all_methods():
        assert method.seeds, f"{method.path} has no message to begin from"
        for parts in method.seeds:
            for part in parts:
                method.request.FromString(part)
