from __future__ import annotations

from pathlib import Path

import pytest

from wardround.demo.containers.places import Places
from wardround.errors import UsageInvalidError


def test_places_before_the_first_stage_say_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(UsageInvalidError) as caught:
        Places(home=tmp_path).read_run_spec()
    assert "docker compose --profile demo up" in caught.value.advice


def test_places_remember_the_run_for_the_next_start(tmp_path: Path) -> None:
    assert Places(home=tmp_path).read_run_id() is None
    Places(home=tmp_path).keep_run_id("run-1")
    Places(home=tmp_path).keep_run_id("run-2")
    assert Places(home=tmp_path).read_run_id() == "run-2"


def test_places_after_the_first_stage_give_the_specification(tmp_path: Path) -> None:
    places = Places(home=tmp_path)
    places.workspace.run_file.write_text("name: x\nrounds: 2\n")
    places.prepared_file.write_text('{"study": "x"}')
    assert places.read_run_spec() == {"name": "x", "rounds": 2}
