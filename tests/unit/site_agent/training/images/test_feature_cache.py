"""Features are computed once, kept for one user, and thrown away when they are damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from site_agent.training.images.feature_cache import FeatureCache

pytestmark = pytest.mark.training


class Tower:
    """Counts how often it is asked."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.n_asked = 0

    def __call__(self) -> torch.Tensor:
        self.n_asked += 1
        return torch.tensor(self.values)


def test_second_look_is_a_file_and_the_same_numbers(tmp_path: Path) -> None:
    tower = Tower([0.1, -2.5, 3e-8])
    for _ in range(2):
        # A new cache each time, as a new trainer has.
        found = FeatureCache(tmp_path / "f", base_sha256="b").get("image a 0", length=3, compute=tower)
        assert torch.equal(found, torch.tensor(tower.values))
    assert tower.n_asked == 1


def test_other_content_frame_or_base_is_computed_anew(tmp_path: Path) -> None:
    tower = Tower([1.0])
    cache = FeatureCache(tmp_path, base_sha256="b")
    for what in ("image a 0", "image a 1", "image b 0"):
        cache.get(what, length=1, compute=tower)
    FeatureCache(tmp_path, base_sha256="c").get("image a 0", length=1, compute=tower)
    assert tower.n_asked == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "empty"])
def test_damaged_file_is_discarded_and_computed_anew(tmp_path: Path, damage: str) -> None:
    tower, cache = Tower([1.0, 2.0]), FeatureCache(tmp_path, base_sha256="b")
    cache.get("x", length=2, compute=tower)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    path.write_bytes({"cut": whole[:-1], "flipped": flipped, "longer": whole + b"x", "empty": b""}[damage])
    assert torch.equal(cache.get("x", length=2, compute=tower), torch.tensor([1.0, 2.0]))
    assert tower.n_asked == 2
    assert path.read_bytes() == whole


def test_file_under_another_name_is_not_used(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, base_sha256="b")
    cache.get("x", length=1, compute=Tower([1.0]))
    (of_x,) = tmp_path.iterdir()
    cache.get("y", length=1, compute=Tower([2.0]))
    of_y = next(path for path in tmp_path.iterdir() if path != of_x)
    of_y.write_bytes(of_x.read_bytes())
    tower = Tower([2.0])
    assert torch.equal(cache.get("y", length=1, compute=tower), torch.tensor([2.0]))
    assert tower.n_asked == 1


def test_files_are_for_this_user_alone_and_name_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    FeatureCache(folder, base_sha256="b").get("image Xylophone 0", length=1, compute=Tower([1.0]))
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "Xylophone" not in path.name


def test_folder_that_cannot_be_written_costs_time_and_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tower = Tower([1.0])
    cache = FeatureCache(tmp_path / "file" / "f", base_sha256="b")
    assert torch.equal(cache.get("x", length=1, compute=tower), torch.tensor([1.0]))
    assert tower.n_asked == 1
