from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import wardround.evidence.siem_feed as module
from wardround.documents import Document
from wardround.errors import EvidenceFaultError, UnavailableError, UsageInvalidError
from wardround.evidence.siem_feed import FeedOptions, write_feed


class Coordinator:
    """A list of events, and calls that fail."""

    def __init__(self, n_events: int) -> None:
        self.items = [self.item(seq) for seq in range(n_events)]
        self.fails = 0

    @staticmethod
    def item(seq: int) -> Document:
        at = "2026-01-02T03:04:05.000001+00:00"
        facts = {"site_id": "a", "ratio": 0.5}
        return {"seq": seq, "at": at, "kind": "of.later", "actor": "user:x", "facts": facts, "leaf_sha256": "ab" * 32}

    def pages(self, path: str, **query: str | int) -> Iterator[Document]:
        assert path == "/api/v1/audit/events"
        for item in [item for item in self.items if int(str(item["seq"])) > int(query["after_seq"])]:
            if self.fails:
                self.fails -= 1
                raise UnavailableError("the coordinator does not answer")
            yield item


def options(**changes: object) -> FeedOptions:
    return FeedOptions(**{"origin": "coordinator", "version": "1", **changes})  # type: ignore[arg-type]


def numbers(out: io.StringIO) -> list[int]:
    return [int(re.findall(r" externalId=(\d+) ", line)[0]) for line in out.getvalue().splitlines()]


def test_feed_goes_on_where_its_cursor_stands(tmp_path: Path) -> None:
    coordinator, cursor = Coordinator(3), tmp_path / "cursor"
    first, second = io.StringIO(), io.StringIO()
    assert write_feed(coordinator, first, options(cursor=cursor)) == 3
    coordinator.items += [coordinator.item(3), coordinator.item(4)]
    assert write_feed(coordinator, second, options(cursor=cursor)) == 2
    assert (numbers(first), numbers(second)) == ([0, 1, 2], [3, 4])


def test_gap_in_the_list_is_told_and_not_passed_over() -> None:
    coordinator, out = Coordinator(5), io.StringIO()
    del coordinator.items[2]
    with pytest.raises(EvidenceFaultError) as caught:
        write_feed(coordinator, out, options())
    assert caught.value.facts["row"] == 2
    assert numbers(out) == [0, 1]


def test_coordinator_that_does_not_answer_ends_a_feed_that_does_not_follow() -> None:
    coordinator = Coordinator(3)
    coordinator.fails = 1
    with pytest.raises(UnavailableError):
        write_feed(coordinator, io.StringIO(), options())


def test_feed_that_follows_asks_again_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, out = Coordinator(3), io.StringIO()
    coordinator.fails = 1
    pauses: list[float] = []

    def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        coordinator.items.append(coordinator.item(len(coordinator.items)))
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        write_feed(coordinator, out, options(poll_s=2.0))
    assert pauses == [2.0] * 3
    assert numbers(out) == [0, 1, 2, 3, 4]


def test_cursor_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cursor").write_text("five")
    with pytest.raises(UsageInvalidError):
        write_feed(Coordinator(1), io.StringIO(), options(cursor=tmp_path / "cursor"))
