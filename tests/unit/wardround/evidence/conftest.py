"""One release as a coordinator gives it out, made once; and the keys to sign what an attacker would write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fl_protocol.signing.keys import EcdsaSigner
from fl_protocol.testing.entropy import seeded_signer
from tests.support.released_run import CompletedRuns, open_resources

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class StandingClock:
    """One instant."""

    def now(self) -> datetime:
        return START


@dataclass(frozen=True)
class Made:
    """A published release's folder, the same before anybody signed it, and the key that signed both."""

    release: Path
    candidate: Path
    release_signer: EcdsaSigner


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("made")
    runs = CompletedRuns(resources=open_resources(root, StandingClock()))
    runs.complete()
    release_id = runs.candidate().release_id
    for name in ("candidate", "release"):
        (root / name).mkdir()
    candidate = runs.unpacked(release_id, root / "candidate", is_candidate=True)
    runs.publish()
    yield Made(
        release=runs.unpacked(release_id, root / "release"),
        candidate=candidate,
        release_signer=seeded_signer("release"),
    )
    runs.resources.db.dispose()


@pytest.fixture
def release(made: Made, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made.release, tmp_path / "release"))
