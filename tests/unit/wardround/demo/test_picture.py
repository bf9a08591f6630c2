from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from wardround.demo.live_table import PlainProgress, TerminalProgress, render
from wardround.demo.picture import Picture, RoundLine, SiteLine, round_lines, site_line
from wardround.demo.shown_metric import MetricChange
from wardround.demo.summary import DemoReport, Generation
from wardround.studies.description import Better, ShownMetric

ROUND = {
    "round_index": 1,
    "kind": "train",
    "state": "COMMITTED",
    "reason": None,
    "counted_sites": ["st-mary", "charite", "ucsf"],
    "seconds": 12.5,
    "report": {"train_loss": 2.5, "eval_loss": 2.75, "n_records": 30},
    "bytes_up": 1500000,
    "bytes_down": 20,
}


def picture(*, state: str = "ACTIVE", rounds: tuple[RoundLine, ...] = ()) -> Picture:
    site = SiteLine(name="st-mary", state="training", activity="evaluating", round_index=0, step=3, steps=5, loss=2.125)
    return Picture(
        run_state=state, reason=None, waits_for="waits for three sites", sites=(site,), rounds=rounds, seconds=1.0
    )


def text_of(renderable: object) -> str:
    file = io.StringIO()
    Console(file=file, width=140).print(renderable)
    return file.getvalue()


def test_round_lines_come_in_their_order_with_the_figures_of_the_sum() -> None:
    first, second = round_lines([ROUND, {**ROUND, "round_index": 0, "report": None, "seconds": None}])
    assert (first.index, first.train_loss, first.seconds) == (0, None, None)
    assert second.to_document() == {
        "index": 1,
        "kind": "train",
        "state": "COMMITTED",
        "counted_sites": ["st-mary", "charite", "ucsf"],
        "seconds": 12.5,
        "train_loss": 2.5,
        "eval_loss": 2.75,
        "bytes_up": 1500000,
        "bytes_down": 20,
    }


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_site_line_of_a_status_that_cannot_be_read_is_still_a_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "status.json"
    if content is not None:
        file.write_text(content)
    assert site_line("st-mary", file) == SiteLine(name="st-mary")


def test_site_line_tells_the_site_s_own_loss(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.write_text(json.dumps({"state": "training", "round_index": 0, "step": 3, "steps": 5, "loss": 2.5}))
    assert site_line("st-mary", file).loss == 2.5


def test_table_shows_sites_and_rounds() -> None:
    text = text_of(render(picture(rounds=round_lines([ROUND]))))
    for expected in ("st-mary", "3/5", "2.1250", "COMMITTED", "12.5", "2.7500", "1.5 MB"):
        assert expected in text


def test_plain_progress_says_each_change_once_and_no_steps() -> None:
    file = io.StringIO()
    progress = PlainProgress(Console(file=file, width=200))
    for _ in range(3):
        progress.show(picture())
    (line,) = round_lines([ROUND])
    progress.show(picture(state="COMPLETED", rounds=(line,)))
    # What the sites download is counted after the commit.
    progress.show(picture(state="COMPLETED", rounds=(replace(line, bytes_down=4_000_000),)))
    lines = [line.split("] ", 1)[1] for line in file.getvalue().splitlines()]
    assert lines == [
        "run: ACTIVE; waits for three sites",
        "st-mary: training, evaluating",
        "round 1 (train): COMMITTED; 12.5 s, 3 sites, train loss 2.5000, eval loss 2.7500, 1.5 MB up",
    ]


def test_terminal_progress_draws_the_table_while_it_watches_and_keeps_it() -> None:
    file = io.StringIO()
    progress = TerminalProgress(Console(file=file, width=140, force_terminal=True, color_system=None))
    with progress.step("Sites enrol"):
        progress.say("one line")
    progress.show(picture())  # nobody watches: nothing is drawn
    assert "3/5" not in file.getvalue()
    with progress.watching():
        progress.show(picture(rounds=round_lines([ROUND])))
    text = file.getvalue()
    for expected in ("✓ Sites enrol", "one line", "3/5", "COMMITTED", "waits for three sites"):
        assert expected in text


def test_plain_progress_says_which_site_has_trouble() -> None:
    file = io.StringIO()
    site = SiteLine(name="ucsf", state="declined", round_index=0)
    shown = Picture(run_state="ACTIVE", reason=None, waits_for="", sites=(site,), rounds=(), seconds=1.0)
    PlainProgress(Console(file=file, width=100)).show(shown)
    assert "ucsf: declined" in file.getvalue()


def test_report_has_every_key_that_is_promised() -> None:
    report = DemoReport(
        run_id="run-a",
        study="s",
        sites=("a", "b", "c"),
        base_model="m",
        base_model_sha256="0" * 64,
        rounds=round_lines([ROUND]),
        eval_loss_before=3.0,
        eval_loss_after=2.0,
        metrics={},
        change=MetricChange(metric=ShownMetric(name="loss", unit="nats", better=Better.LOWER), before=3.0, after=2.0),
        generation=Generation(prompt="p", reference="r", before="b", after="a"),
        release_dir=Path("release"),
        work_dir=Path("work"),
        audit_rows={"coordinator": 9},
        seconds=12.34,
    )
    promised = {
        "run_id", "study", "sites", "base_model", "secure_aggregation", "rounds", "eval_loss_before",
        "eval_loss_after", "metrics", "metric", "release_dir", "audit_verified", "seconds",
    }  # fmt: skip
    assert promised <= set(report.to_document())
    json.dumps(report.to_document())
