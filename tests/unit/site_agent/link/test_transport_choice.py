from __future__ import annotations

import pytest

from site_agent.link.transport_choice import Look, Transport, TransportChoice


def failing(choice: TransportChoice, *instants: float) -> None:
    for instant in instants:
        choice.failed(choice.current, instant)


def test_link_begins_with_grpc_and_looks_for_nothing() -> None:
    choice = TransportChoice(has_other=True)
    assert choice.current is Transport.GRPC
    assert choice.look(0.0) is Look.NOTHING


def test_first_failure_asks_only_whether_http2_is_reset() -> None:
    choice = TransportChoice(has_other=True)
    failing(choice, 0.0)
    assert choice.look(0.0) is Look.HTTP2_ONLY
    choice.looked(0.1)
    assert choice.look(0.2) is Look.NOTHING


@pytest.mark.parametrize(
    ("failures", "now", "look"),
    [
        ((0.0, 5.0, 10.0), 21.0, Look.OTHER_WAY),
        ((0.0, 5.0, 10.0), 19.0, Look.NOTHING),
        ((0.0, 30.0), 31.0, Look.NOTHING),
    ],
)
def test_other_way_is_looked_for_after_three_failures_and_twenty_seconds(
    failures: tuple[float, ...], now: float, look: Look
) -> None:
    choice = TransportChoice(has_other=True)
    failing(choice, failures[0])
    choice.looked(failures[0])
    failing(choice, *failures[1:])
    assert choice.look(now) is look


def test_refusal_or_answer_forgets_the_failures() -> None:
    choice = TransportChoice(has_other=True)
    failing(choice, 0.0, 10.0)
    choice.succeeded(Transport.GRPC, 15.0)
    failing(choice, 25.0)
    assert choice.n_failures == 1
    assert choice.look(30.0) is Look.HTTP2_ONLY


def test_late_news_of_the_other_transport_counts_for_nothing() -> None:
    choice = TransportChoice(has_other=True)
    choice.change(Transport.HTTP1, 0.0)
    choice.failed(Transport.GRPC, 1.0)
    assert choice.n_failures == 0
    failing(choice, 2.0)
    choice.succeeded(Transport.GRPC, 3.0)
    assert choice.n_failures == 1


def test_grpc_is_tried_again_every_ten_minutes() -> None:
    choice = TransportChoice(has_other=True)
    choice.change(Transport.HTTP1, 0.0)
    assert choice.look(599.0) is Look.NOTHING
    assert choice.look(600.0) is Look.RETURN
    choice.looked(600.0)
    choice.succeeded(Transport.HTTP1, 601.0)
    assert choice.look(601.0) is not Look.RETURN
    assert choice.look(1200.0) is Look.RETURN


def test_returns_that_do_not_last_come_later_each_time_and_a_lasting_one_mends_that() -> None:
    choice, now, pauses = TransportChoice(has_other=True), 0.0, []
    for _ in range(8):
        choice.change(Transport.HTTP1, now)
        began = now
        while choice.look(now) is not Look.RETURN:
            now += 10.0
        pauses.append(now - began)
        choice.change(Transport.GRPC, now)
        now += 30.0
    assert pauses == [600.0, 1200.0, 2400.0, 4800.0, 9600.0, 19200.0, 21600.0, 21600.0]
    choice.succeeded(Transport.GRPC, now + 3600.0)
    now += 4000.0
    choice.change(Transport.HTTP1, now)
    assert choice.look(now + 599.0) is Look.NOTHING
    assert choice.look(now + 600.0) is Look.RETURN


def test_without_another_way_nothing_is_chosen() -> None:
    choice = TransportChoice(has_other=False)
    failing(choice, 0.0, 10.0, 30.0)
    assert choice.look(100.0) is Look.NOTHING


def test_failing_second_way_is_given_up_as_slowly_as_the_first() -> None:
    choice = TransportChoice(has_other=True)
    choice.change(Transport.HTTP1, 0.0)
    failing(choice, 1.0, 2.0)
    assert choice.look(3.0) is Look.NOTHING
    failing(choice, 10.0)
    assert choice.look(22.0) is Look.OTHER_WAY
