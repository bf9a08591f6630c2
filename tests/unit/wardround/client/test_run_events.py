from __future__ import annotations

import pytest

from wardround.client.run_events import RunEventKind, events_from_lines
from wardround.errors import ResponseUnreadableError


def test_stream_gives_run_round_and_end_and_passes_over_the_rest() -> None:
    text = (
        ': keep-alive\n\nevent: run\ndata: {"state": "ACTIVE"}\n\n'
        'event: unknown\ndata: nothing\n\nevent: round\ndata: {"round_index":\ndata: 0}\n\n'
        'event: end\ndata:{"state": "COMPLETED"}\n\nevent: run\ndata: {"cut'
    )
    events = list(events_from_lines(text.split("\n")[:-1]))
    assert [(event.kind, dict(event.document)) for event in events] == [
        (RunEventKind.RUN, {"state": "ACTIVE"}),
        (RunEventKind.ROUND, {"round_index": 0}),
        (RunEventKind.END, {"state": "COMPLETED"}),
    ]


@pytest.mark.parametrize("data", ["nonsense", "[1]"])
def test_stream_with_data_that_is_no_object_is_unreadable(data: str) -> None:
    with pytest.raises(ResponseUnreadableError):
        list(events_from_lines(["event: run", f"data: {data}", ""]))
