"""What every command has: where to write, in which form, and how to reach the coordinator.

One JSON document goes to stdout under ``--json``; otherwise text for people does. Everything else goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wardround.client.connection import load_connection
from wardround.client.rest import RestClient
from wardround.documents import Document

Column = tuple[str, str]
"""A column's heading, and the key of the value that stands in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """One call of the command."""

    as_json: bool
    environment: Mapping[str, str]
    out: Console
    err: Console
    open_client: Callable[[Mapping[str, str]], RestClient]

    def connect(self) -> RestClient:
        """The coordinator that the user signed in to."""
        return self.open_client(self.environment)

    def show_document(self, document: Mapping[str, object]) -> None:
        """The one JSON document of this call."""
        self.out.file.write(json.dumps(dict(document), ensure_ascii=False, indent=2, default=str) + "\n")

    def show_list(self, items: Iterable[Document], columns: Sequence[Column], *, nothing: str) -> None:
        """A table, or ``{"items": [...]}``; ``nothing`` says what to do where there is none."""
        rows = list(items)
        if self.as_json:
            self.show_document({"items": rows})
            return
        if not rows:
            self.out.print(Text(nothing))
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading, _ in columns:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell(row.get(key))) for _, key in columns))
        self.out.print(table)

    def show_facts(self, document: Document, columns: Sequence[Column]) -> None:
        """One thing, a line a fact; or its document."""
        if self.as_json:
            self.show_document(document)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for heading, key in columns:
            if document.get(key) not in (None, "", []):
                table.add_row(heading, Text(cell(document.get(key))))
        self.out.print(table)

    def say(self, sentence: str) -> None:
        """One sentence on stdout for people; nothing under ``--json``."""
        if not self.as_json:
            self.out.print(Text(sentence))

    def note(self, sentence: str) -> None:
        """One sentence on stderr, always."""
        self.err.print(Text(sentence))


def shell_of(context: typer.Context) -> Shell:
    """The shell that ``main`` put into the context."""
    shell = context.find_object(Shell)
    assert shell is not None, "main() passes the shell to the application"
    return shell


def open_client(environment: Mapping[str, str]) -> RestClient:
    """A client for the connection of the environment and the profile."""
    return RestClient(load_connection(environment))


def cell(value: object) -> str:
    """A value as it stands in a table."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list() | tuple():
            return ", ".join(cell(item) for item in value) or "-"
        case dict():
            return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
        case _:
            return str(value)


def size_text(n_bytes: float) -> str:
    """A number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
