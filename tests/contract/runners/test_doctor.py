"""``doctor`` of a site whose runner is a real engine: its image, another one, and a socket that owns the machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import docker
import pytest

from fl_protocol.telemetry.findings import CheckResult
from site_agent.doctor.scene import Scene
from site_agent.doctor.table import run_checks
from site_agent.folder import SiteFolder
from tests.contract.runners.conftest import engine_address

pytestmark = pytest.mark.containers


@pytest.fixture
def image_id() -> str:
    """Any image that the engine has; nothing of it is started."""
    client = docker.DockerClient(base_url=engine_address())
    try:
        images = client.images.list()
    finally:
        client.close()
    if not images:
        pytest.skip("the engine has no image")
    return str(images[0].id)


def told(folder: Path, *, image: str, allows_root: bool = True) -> CheckResult:
    lines = (
        "kind: docker",
        f"engine: {engine_address()}",
        f"image: {image}",
        f"allow_root_socket: {str(allows_root).lower()}",
    )
    (folder / "site.yaml").write_text("\n  ".join(("runner:", *lines)))
    scene = Scene(folder=SiteFolder(root=folder), clock=lambda: datetime(2026, 1, 1, tzinfo=UTC), environment={})
    (result,) = [result for result in run_checks(scene) if result.name == "runner"]
    return result


def test_image_that_is_there_and_one_that_is_not_are_told_apart(tmp_path: Path, image_id: str) -> None:
    result = told(tmp_path, image=image_id)
    assert (result.code, image_id[:19] in result.message) == ("runner-good", True)
    result = told(tmp_path, image=f"sha256:{'ab' * 32}")
    assert (result.code, "docker load" in result.advice) == ("image-mismatch", True)


def test_root_engines_own_socket_is_refused_with_what_to_use_instead(tmp_path: Path, image_id: str) -> None:
    result = told(tmp_path, image=image_id, allows_root=False)
    assert (result.code, "rootless" in result.advice) == ("runner-error", True)
