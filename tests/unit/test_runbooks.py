"""Every command and option that a runbook names exists, every page that it links is there, and each has its parts."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from coordinator.__main__ import cli as coordinator_app
from fl_protocol.telemetry.coordinator_metrics import COORDINATOR_METRICS
from fl_protocol.telemetry.site_metrics import SITE_METRICS
from site_agent.cli.app import app as site_app
from wardround.__main__ import app as wardround_app

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
OPERATING = ("coordinator", "site", "upgrade", "observability", "sizing")
PAGES = [*RUNBOOKS, *(ROOT / "docs" / "operating" / f"{name}.md" for name in OPERATING)]
APPS = {"wardround": wardround_app, "wardround-site": site_app, "wardround-coordinator": coordinator_app}
SERIES = {name for metric in (*COORDINATOR_METRICS, *SITE_METRICS) for name in metric.series_names}
ASKED = ("site-offline.md", "certificate-expired.md", "upgrade.md", "revoke-a-site.md", "coordinator-stalled.md")


@cache
def program(name: str) -> click.Command:
    return typer.main.get_command(APPS[name])


def spans_of(text: str) -> list[str]:
    """What stands as code: between backquotes, and in indented lines."""
    indented = [line.strip() for line in re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)]
    return [*re.findall(r"`([^`]+)`", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)), *indented]


def commands_of(text: str) -> list[str]:
    """Those that call one of the three programs, with at least one word behind it; without comments."""
    called = [" ".join(re.sub(r"\s#\s.*$", "", span).split()) for span in spans_of(text)]
    starts = tuple(f"{name} " for name in APPS)
    return [
        re.sub(r"[|&;].*$", "", re.sub(r"^\w+\$ +", "", each)).strip() for each in called if each.startswith(starts)
    ]


def faults_of(line: str) -> list[str]:
    """What of a command line does not exist."""
    words = shlex.split(line.rstrip("\\").replace("'", "").replace('"', ""))
    command, path, left = program(words[0]), words[0], words[1:]
    known = options_of(command)
    while left:
        word = left.pop(0)
        children = getattr(command, "commands", {})
        if word.startswith("-") and word != "-":
            if word.partition("=")[0] not in known:
                return [f"{path} has no option {word}"]
            if not known[word.partition("=")[0]] and left:
                left.pop(0)
        elif children:
            if word not in children and not word.isupper():
                return [f"{path} has no command {word}"]
            if word not in children:
                return []
            command, path = children[word], f"{path} {word}"
            known = {**known, **options_of(command)}
    return []


def options_of(command: click.Command) -> dict[str, bool]:
    """The names of its options, and whether each is a flag."""
    return {
        name: bool(getattr(parameter, "is_flag", False))
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts, "--help")
        if name.startswith("-")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_exists(page: Path) -> None:
    commands = commands_of(page.read_text())
    assert commands or page.stem not in {Path(name).stem for name in ASKED}
    faults = {line: found for line in commands if (found := faults_of(line))}
    assert not faults


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("wardround sites shows SITE", "wardround sites has no command shows"),
        ("wardround sites revoke SITE --because TEXT", "wardround sites revoke has no option --because"),
        ("wardround-coordinator ca rotates", "wardround-coordinator ca has no command rotates"),
    ],
)
def test_command_that_does_not_exist_is_found(line: str, fault: str) -> None:
    assert commands_of(f"see `{line}` here") == [line]
    assert faults_of(line) == [fault]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ASKED)
def test_runbook_has_its_parts_and_speaks_of_metrics_that_exist(name: str) -> None:
    text = (ROOT / "docs" / "runbooks" / name).read_text()
    assert "**Seen as:**" in text or "**Before:**" in text or "**When:**" in text
    for part in ("**Check:**", "| do |"):
        assert part in text or name == "revoke-a-site.md", part
    assert set(re.findall(r"wardround_(?:coordinator|site)_\w+", text)) <= SERIES
