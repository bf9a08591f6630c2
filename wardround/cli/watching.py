"""Following a run: one line a change, until it has ended. A lost connection is opened again a few times."""

from __future__ import annotations

import time

from rich.text import Text

from wardround.cli.shell import Shell, cell, size_text
from wardround.client.rest import RestClient
from wardround.client.run_events import RunEventKind, events_from_lines
from wardround.documents import Document
from wardround.errors import UnavailableError

END_STATES = frozenset({"COMPLETED", "CANCELLED", "FAILED"})
_N_RECONNECTS = 5
_PAUSE_S = 1.0


def watch_until_end(shell: Shell, client: RestClient, *, run_id: str) -> Document:
    """Say every change of a run and its rounds on stderr under ``--json``, else on stdout; returns the run at its end.

    Raises:
        UnavailableError: the coordinator was out of reach for too long.
    """
    said: set[str] = set()
    n_lost = 0
    while True:
        try:
            for event in events_from_lines(client.lines(f"/api/v1/runs/{run_id}/events")):
                n_lost = 0
                if event.kind is RunEventKind.END:
                    return client.get(f"/api/v1/runs/{run_id}")
                sentence = (
                    _run_sentence(event.document) if event.kind is RunEventKind.RUN else round_sentence(event.document)
                )
                if sentence not in said:
                    said.add(sentence)
                    (shell.err if shell.as_json else shell.out).print(Text(sentence))
        except UnavailableError:
            n_lost += 1
            if n_lost > _N_RECONNECTS:
                raise
        run = client.get(f"/api/v1/runs/{run_id}")
        if run.get("state") in END_STATES:
            return run
        time.sleep(_PAUSE_S)


def round_sentence(document: Document) -> str:
    """One line about a round."""
    head = f"round {cell(document.get('round_index'))} ({cell(document.get('kind'))}): {cell(document.get('state'))}"
    if document.get("reason"):
        head += f", {cell(document.get('reason'))}"
    report = document.get("report")
    if not isinstance(report, dict):
        return head
    figures = [f"{cell(document.get('seconds'))} s"]
    figures += [
        f"{name} {cell(report.get(key))}" for name, key in (("train loss", "train_loss"), ("eval loss", "eval_loss"))
    ]
    for name, key in (("up", "bytes_up"), ("down", "bytes_down")):
        value = document.get(key)
        figures.append(f"{name} {size_text(value) if isinstance(value, int | float) else '-'}")
    return f"{head}; {', '.join(figures)}"


def _run_sentence(document: Document) -> str:
    sentence = f"run {cell(document.get('run_id'))}: {cell(document.get('state'))}"
    for key in ("reason", "waits_for"):
        if document.get(key):
            sentence += f"; {cell(document.get(key))}"
    return sentence
