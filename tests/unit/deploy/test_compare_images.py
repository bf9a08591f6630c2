"""Two saved images, made here by hand as `docker save` writes them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Member = dict[str, Any]
Files = dict[str, Member]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("scripts/compare_images.py")


def tar_of(members: Files) -> bytes:
    """A tar; a member is `{content | link, mode, uid, mtime}`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.mode = member.get("mode", 0o644)
            info.uid = member.get("uid", 0)
            info.mtime = member.get("mtime", 315532800)
            content = member.get("content", b"")
            if "link" in member:
                info.type, info.linkname = tarfile.SYMTYPE, member["link"]
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image_at(path: Path, *layers: Files, n_images: int = 1) -> Path:
    names = [f"blobs/sha256/{index}" for index in range(len(layers))]
    manifest = json.dumps([{"Config": "config", "RepoTags": ["x:1"], "Layers": names}] * n_images).encode()
    parts = {"manifest.json": {"content": manifest}}
    parts |= {name: {"content": tar_of(layer)} for name, layer in zip(names, layers, strict=True)}
    path.write_bytes(tar_of(parts))
    return path


BASE: Files = {"etc/debian_version": {"content": b"12.9\n"}}
OURS: Files = {
    "opt/wardround/app/main.py": {"content": b"print(1)\n"},
    "opt/wardround/venv/bin/python": {"link": "/usr/bin/python3", "mode": 0o777},
}


def compared(script: ModuleType, tmp_path: Path, one: list[Files], other: list[Files]) -> Any:
    left = script.layers_of(image_at(tmp_path / "one.tar", *one))
    right = script.layers_of(image_at(tmp_path / "other.tar", *other))
    return script.compare(left, right)


def test_compare_two_builds_of_the_same_files_finds_no_difference(script: ModuleType, tmp_path: Path) -> None:
    found = compared(script, tmp_path, [BASE, OURS], [BASE, OURS])
    assert (found.n_same, found.differing, found.differing_in_base, found.n_times) == (2, (), (), 0)


@pytest.mark.parametrize(
    ("path", "member", "what"),
    [
        ("opt/wardround/app/main.py", {"content": b"print(2)\n"}, "content"),
        ("opt/wardround/app/main.py", {"content": b"print(1)\n", "mode": 0o755}, "mode"),
        ("opt/wardround/app/main.py", {"content": b"print(1)\n", "uid": 1000}, "owner"),
        ("opt/wardround/venv/bin/python", {"link": "/usr/bin/python3.12", "mode": 0o777}, "content"),
        ("opt/wardround/venv/bin/python", {"content": b"", "mode": 0o777}, "kind, content"),
    ],
)
def test_compare_one_altered_file_is_named_with_what_differs(
    script: ModuleType, tmp_path: Path, path: str, member: Member, what: str
) -> None:
    found = compared(script, tmp_path, [BASE, OURS], [BASE, OURS | {path: member}])
    assert found.differing == (f"layer 1: {path}: {what}",)
    assert found.n_same == 1


def test_compare_a_file_that_one_image_lacks_differs(script: ModuleType, tmp_path: Path) -> None:
    found = compared(script, tmp_path, [BASE, OURS], [BASE, OURS | {"opt/extra": {"content": b"x"}}])
    assert found.differing == ("layer 1: opt/extra: only in the second",)
    found = compared(script, tmp_path, [BASE, OURS, {"late": {}}], [BASE, OURS])
    assert found.differing == ("layer 2: late: only in the first",)


def test_compare_differences_of_the_base_are_told_apart(script: ModuleType, tmp_path: Path) -> None:
    found = compared(script, tmp_path, [BASE, OURS], [{"etc/debian_version": {"content": b"12.10\n"}}, OURS])
    assert found.differing == ()
    assert found.differing_in_base == ("layer 0: etc/debian_version: content",)


def test_compare_another_time_alone_is_counted_and_no_difference(script: ModuleType, tmp_path: Path) -> None:
    later = {path: member | {"mtime": 1_700_000_000} for path, member in OURS.items()}
    found = compared(script, tmp_path, [BASE, OURS], [BASE, later])
    assert (found.n_same, found.differing, found.n_times) == (2, (), 2)


@pytest.mark.parametrize("n_images", [0, 2])
def test_layers_of_a_file_of_none_or_two_images_is_refused(script: ModuleType, tmp_path: Path, n_images: int) -> None:
    with pytest.raises(script.NoImageError, match=f"holds {n_images} images"):
        script.layers_of(image_at(tmp_path / "image.tar", BASE, n_images=n_images))


def test_layers_of_a_file_that_is_no_image_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 200)
    (tmp_path / "other.tar").write_bytes(tar_of({"README": {"content": b"x"}}))
    for name in ("noise", "other.tar"):
        with pytest.raises(script.NoImageError, match="docker save"):
            script.layers_of(tmp_path / name)
