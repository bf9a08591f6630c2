"""The document of a study's table: read strictly, written whole after every cell, by one command at a time.

``docs/studies/<name>.json``. A command that is killed between two cells loses nothing that was done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.studies.cells import Cell, cell_from_document
from benchmarks.studies.errors import TableBusyError, TableUnreadableError

FORMAT = 1


@dataclass(slots=True, kw_only=True)
class Table:
    """A study's table as it is filled.

    Invariant: no two cells have one place.

    Attributes:
        common: what all cells of one digest share, by that digest.
        machines: what the cells were computed on, in the order of their first cell.
        chosen: the setting that the search chose, for people; it follows from the cells.
    """

    study: str
    common: dict[str, Mapping[str, object]] = field(default_factory=dict)
    machines: list[Mapping[str, object]] = field(default_factory=list)
    chosen: Mapping[str, object] | None = None
    cells: dict[tuple[object, ...], Cell] = field(default_factory=dict)

    def put(self, cell: Cell) -> None:
        """Keep a cell, in place of an older one."""
        self.cells[cell.key.place] = cell

    def keep_only(self, common_sha256: str) -> int:
        """Drop what was filled with other common settings; returns how many cells that were."""
        kept = {place: cell for place, cell in self.cells.items() if cell.common_sha256 == common_sha256}
        n_dropped = len(self.cells) - len(kept)
        self.cells = kept
        self.common = {digest: document for digest, document in self.common.items() if digest == common_sha256}
        return n_dropped

    def to_document(self) -> dict[str, object]:
        """The whole table as JSON values."""
        cells = sorted(self.cells.values(), key=lambda cell: cell.key)
        return {
            "format": FORMAT,
            "study": self.study,
            "settings": self.common,
            "machines": self.machines,
            "chosen": self.chosen,
            "cells": [cell.to_document() for cell in cells],
        }


def read_table(path: Path, *, study: str) -> Table:
    """The table in a file; an empty one where there is no file.

    Raises:
        TableUnreadableError: the file holds something else, or another study's table.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Table(study=study)
    except (OSError, ValueError) as error:
        raise _unreadable(path, "it is no JSON that can be read") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _unreadable(path, f"it is no study's table of format {FORMAT}")
    if document.get("study") != study:
        raise _unreadable(path, "it is another study's table")
    common, machines, cells = document.get("settings"), document.get("machines"), document.get("cells")
    if not isinstance(common, dict) or not isinstance(machines, list) or not isinstance(cells, list):
        raise _unreadable(path, "a part of it is missing")
    table = Table(study=study, common=common, machines=machines, chosen=document.get("chosen"))
    for cell in cells:
        table.put(cell_from_document(cell))
    return table


def write_table(path: Path, table: Table) -> None:
    """Write the table whole or not at all; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table.to_document(), indent=1, ensure_ascii=False) + "\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the table for this process; a killed process holds nothing any more.

    Raises:
        TableBusyError: another process holds it.
    """
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    # Not beside the table: the lock is of this machine, the table is in version control.
    with (Path(tempfile.gettempdir()) / f"wardround-table-{os.getuid()}-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another command is filling {path}"
            raise TableBusyError(message, advice="Wait for it, or name another file with --table.") from error
        yield


def _unreadable(path: Path, what: str) -> TableUnreadableError:
    return TableUnreadableError(f"{path}: {what}", advice="Name another file with --table, or remove this one.")
