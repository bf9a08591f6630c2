"""Showing a demonstration: a live table on a terminal, plain lines everywhere else. Knows no process and no REST."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wardround.cli.shell import size_text
from wardround.demo.picture import Picture, RoundLine, SiteLine

_TROUBLE = frozenset({"declined", "failed", "abandoned"})
_STATE_STYLE = {"COMMITTED": "green", "ABORTED": "red", "FAILED": "red", "COMPLETED": "green"}


class Progress(Protocol):
    """Somebody who is told how far the demonstration is."""

    def step(self, sentence: str) -> AbstractContextManager[None]:
        """Something that takes a while begins; leaving the context ends it."""
        ...

    def say(self, sentence: str) -> None:
        """One sentence that stays."""
        ...

    def watching(self) -> AbstractContextManager[None]:
        """The run is under way; ``show`` may be called inside."""
        ...

    def show(self, picture: Picture) -> None:
        """The federation as it is now."""
        ...


class TerminalProgress:
    """Spinners for the set-up, then a table that is drawn over itself."""

    def __init__(self, console: Console) -> None:
        """``console`` is a terminal."""
        self._console = console
        self._live: Live | None = None

    @contextlib.contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        """A spinner, then a line with the seconds that it took."""
        began = time.monotonic()
        with self._console.status(Text(sentence)):
            yield
        self._console.print(Text.assemble(("✓ ", "green"), sentence, (f"  {time.monotonic() - began:.1f} s", "dim")))

    def say(self, sentence: str) -> None:
        """One line."""
        self._console.print(Text(sentence))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The table stays as it was last."""
        with Live(console=self._console, refresh_per_second=4, transient=False) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def show(self, picture: Picture) -> None:
        """Draw the table."""
        if self._live is not None:
            self._live.update(render(picture))


class PlainProgress:
    """One line a change; for logs, pipes and ``--json``."""

    def __init__(self, console: Console) -> None:
        """``console`` need not be a terminal."""
        self._console = console
        self._began = time.monotonic()
        self._said: dict[str, str] = {}

    @contextlib.contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        """A line at the beginning and one at the end."""
        began = time.monotonic()
        self.say(f"{sentence} ...")
        yield
        self.say(f"{sentence}: done in {time.monotonic() - began:.1f} s")

    def say(self, sentence: str) -> None:
        """A line with the seconds since the beginning."""
        self._console.print(Text(f"[{time.monotonic() - self._began:6.1f} s] {sentence}"), soft_wrap=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Nothing to prepare."""
        yield

    def show(self, picture: Picture) -> None:
        """What changed: the run's state, each round's, and of the sites what they train; no steps, no phases."""
        if not picture.has_ended:
            self._say_once("run", f"run: {picture.run_state}", more=picture.waits_for)
        for site in picture.sites:
            if site.activity or site.state in _TROUBLE:
                self._say_once(f"site {site.name}", f"{site.name}: {_activity_of(site)}")
        for line in picture.rounds:
            self._say_once(f"round {line.index}", _round_sentence(line))

    def _say_once(self, key: str, sentence: str, *, more: str = "") -> None:
        if self._said.get(key) != sentence:
            self._said[key] = sentence
            self.say(f"{sentence}; {more}" if more else sentence)


def render(picture: Picture) -> RenderableType:
    """The live table: sites, rounds, and what the run waits for."""
    head = Text.assemble((picture.run_state, "bold"), f"  {picture.seconds:.0f} s", ("  " + picture.waits_for, "dim"))
    return Group(_sites_table(picture), Text(), rounds_table(picture.rounds), Text(), head)


def rounds_table(rounds: tuple[RoundLine, ...]) -> Table:
    """One row a round."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("round", "state"):
        table.add_column(heading)
    for heading in ("sites", "seconds", "train loss", "eval loss", "bytes up", "bytes down"):
        table.add_column(heading, justify="right")
    for line in rounds:
        state = line.state if line.reason is None else f"{line.state} ({line.reason})"
        table.add_row(
            f"{line.index}" if line.kind == "train" else f"{line.index} (eval)",
            Text(state, style=_STATE_STYLE.get(line.state, "yellow")),
            str(len(line.counted_sites)) if line.counted_sites else "-",
            number_text(line.seconds, ".1f"),
            number_text(line.train_loss, ".4f"),
            number_text(line.eval_loss, ".4f"),
            size_text(line.bytes_up),
            size_text(line.bytes_down),
        )
    return table


def number_text(value: float | None, form: str) -> str:
    """A figure, or a dash."""
    return "-" if value is None else format(value, form)


def _sites_table(picture: Picture) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("site", "state", "round"):
        table.add_column(heading, min_width=8)
    table.add_column("step", justify="right", min_width=8)
    table.add_column("loss (stays here)", justify="right")
    for site in picture.sites:
        step = f"{site.step}/{site.steps}" if site.step is not None and site.steps else "-"
        round_text = "-" if site.round_index is None else str(site.round_index)
        table.add_row(site.name, Text(_activity_of(site)), round_text, step, number_text(site.loss, ".4f"))
    return table


def _activity_of(site: SiteLine) -> str:
    return site.state if site.activity in (None, "", site.state) else f"{site.state}, {site.activity}"


def _round_sentence(line: RoundLine) -> str:
    sentence = f"round {line.index} ({line.kind}): {line.state}"
    if line.reason is not None:
        sentence += f" ({line.reason})"
    if line.state != "COMMITTED":
        return sentence
    figures = (
        f"{number_text(line.seconds, '.1f')} s",
        f"{len(line.counted_sites)} sites",
        f"train loss {number_text(line.train_loss, '.4f')}",
        f"eval loss {number_text(line.eval_loss, '.4f')}",
        f"{size_text(line.bytes_up)} up",
    )
    # What goes down is counted on after the commit; with it, the line would come again. The closing table has it.
    return f"{sentence}; {', '.join(figures)}"
