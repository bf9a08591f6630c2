"""A release behind two towers is loaded by the lines of its own card, as written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from coordinator.services.model_card_use import use_of
from fl_protocol.spec.adapters import AdapterKind
from fl_protocol.tensors.safetensors_io import bytes_from_tensors
from site_agent.training.errors import AdapterUnreadableError, BaseModelDigestMismatchError
from site_agent.training.released_towers import load
from tests.support.image_jobs import ADAPTER_TASK, CLASSES, CONTRASTIVE_TASK, bound_image_spec
from tests.support.tiny_clip import make_tiny_clip, write_image_dataset

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    make_tiny_clip(folder)
    return folder


def release(folder: Path, tiny_clip: Path, task: dict[str, object], *, scale: float) -> Path:
    """What of a release's folder is needed to use it."""
    spec, layout, _ = bound_image_spec(tiny_clip, task)
    values = np.random.default_rng(3).normal(0, scale, layout.n_parameters).astype(np.float32)
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "run_spec.json").write_bytes(spec.canonical_bytes())
    (folder / "model.safetensors").write_bytes(bytes_from_tensors(layout.unflatten(values), {"format": "pt"}))
    return folder


@pytest.mark.parametrize(
    ("kind", "task"),
    [(AdapterKind.ATTENTION, ADAPTER_TASK), (AdapterKind.JOINT_PROJECTION, CONTRASTIVE_TASK)],
)
def test_lines_of_the_card_run_as_they_are_written(
    tmp_path: Path, tiny_clip: Path, kind: AdapterKind, task: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = release(tmp_path / "release", tiny_clip, task, scale=0.3)
    image = write_image_dataset(tmp_path / "d", ["platelet"]).parent / "0.png"
    text = use_of(kind).text.replace("{base}", "tiny-clip")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for written, here in (
        ("path/to/this/folder", folder), ("path/to/tiny-clip", tiny_clip), ("path/to/image.png", image)
    ):  # fmt: skip
        assert written in code
        code = code.replace(written, str(here))
    exec(code, {})  # the card's own lines are what is tested
    printed = capsys.readouterr().out
    assert all(str(one["name"]) in printed for one in CLASSES)


def test_shares_sum_to_one_and_another_adapter_gives_others(tmp_path: Path, tiny_clip: Path) -> None:
    image = write_image_dataset(tmp_path / "d", ["platelet"]).parent / "0.png"
    shares = []
    for number, scale in enumerate((0.0, 0.3)):
        folder = release(tmp_path / f"r{number}", tiny_clip, CONTRASTIVE_TASK, scale=scale)
        (of_image,) = load(folder, base=tiny_clip).classify([image])
        assert sum(of_image.values()) == pytest.approx(1.0)
        shares.append(of_image)
    assert shares[0] != shares[1]


def test_base_that_the_run_does_not_name_is_refused(tmp_path: Path, tiny_clip: Path) -> None:
    folder = release(tmp_path / "release", tiny_clip, ADAPTER_TASK, scale=0.0)
    spec = (folder / "evidence" / "run_spec.json").read_bytes()
    digest = re.search(rb'"base_model":\{"name":"tiny-clip","sha256":"([0-9a-f]{64})"', spec)
    assert digest is not None
    (folder / "evidence" / "run_spec.json").write_bytes(spec.replace(digest.group(1), b"a" * 64))
    with pytest.raises(BaseModelDigestMismatchError):
        load(folder, base=tiny_clip)


def test_folder_that_is_no_release_is_named(tmp_path: Path, tiny_clip: Path) -> None:
    with pytest.raises(AdapterUnreadableError):
        load(tmp_path, base=tiny_clip)
