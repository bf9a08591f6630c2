"""Exports of every party of a federation, and ``wardround audit verify`` as somebody outside runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.support.federation import Federation
from tests.e2e.support.template import ENVIRONMENT


def export_coordinator(federation: Federation, name: str) -> Path:
    """What the running coordinator exports."""
    file = federation.folder / f"{name}.jsonl"
    federation.client.download("/api/v1/audit/export", file)
    return file


def export_sites(federation: Federation) -> list[Path]:
    """What each site exports, by its own program."""
    files = []
    for site in federation.site_names:
        file = federation.folder / f"audit-{site}.jsonl"
        call_site(federation, site, "audit", "export", str(file), "--replace")
        files.append(file)
    return files


def call_site(federation: Federation, site: str, *words: str) -> tuple[int, dict[str, object]]:
    """One command of one site; its exit status and document."""
    return _call("site_agent", "--json", "--state-dir", str(federation.site_dir(site)), *words)


def verify(coordinator: Path, sites: Iterable[Path] = ()) -> tuple[int, dict[str, object]]:
    """``wardround audit verify FILE --with ...``: needs no connection, no token and no coordinator."""
    beside = [word for site in sites for word in ("--with", str(site))]
    return _call("wardround", "--json", "audit", "verify", str(coordinator), *beside)


def _call(module: str, *words: str) -> tuple[int, dict[str, object]]:
    answer = subprocess.run(
        [sys.executable, "-m", module, *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    document: dict[str, object] = json.loads(answer.stdout)
    return answer.returncode, document
