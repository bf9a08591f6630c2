"""Say whether two builds of an image, ONE.tar and OTHER.tar, hold the same files.

    docker save --output one.tar wardround/coordinator:0.1.0
    docker save --output other.tar wardround/coordinator:rebuilt
    python deploy/scripts/compare_images.py one.tar other.tar

Each layer is compared file by file: kind, digest of the contents (or what a link names), mode and owner. Files of the
base (the first layer: Debian and Python, which are somebody else's builds) are told apart from those that our build
adds, and do not fail the comparison. Exit code 1: a file of ours differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

N_BASE_LAYERS = 1
CHUNK_BYTES = 1 << 20


class NoImageError(Exception):
    """The file is not what `docker save` writes for one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is compared of one path in a layer.

    Attributes:
        kind: tar's type flag, as one character.
        content: SHA-256 of a file, the target of a link, nothing for others.
        mode: permission bits.
        owner: uid and gid.
        mtime_s: seconds since 1970; a difference in nothing else is no difference of the file.
    """

    kind: str
    content: str
    mode: int
    owner: tuple[int, int]
    mtime_s: int

    def is_same(self, other: Entry) -> bool:
        """Whether the two are the same file, at whatever time it was written."""
        return (self.kind, self.content, self.mode, self.owner) == (other.kind, other.content, other.mode, other.owner)


Layer = Mapping[str, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What two images have in common.

    Attributes:
        n_same: files, links and folders of ours that are the same.
        differing: those of ours that are not, each with what differs.
        differing_in_base: those of the base's.
        n_times: paths of ours that differ in their time alone.
    """

    n_same: int
    differing: tuple[str, ...]
    differing_in_base: tuple[str, ...]
    n_times: int


def layers_of(image: Path) -> list[Layer]:
    """The layers of a saved image, the base first.

    Raises:
        NoImageError: it is no tar, or not of exactly one image.
    """
    try:
        with tarfile.open(image) as saved:
            manifest = saved.extractfile("manifest.json")
            if manifest is None:
                raise NoImageError(f"{image}: no image is described in it")
            images = json.load(manifest)
            if len(images) != 1:
                raise NoImageError(f"{image} holds {len(images)} images; save one")
            return [_entries(saved, name) for name in images[0]["Layers"]]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise NoImageError(f"{image} is not what `docker save` writes: {error}") from error


def _entries(saved: tarfile.TarFile, name: str) -> dict[str, Entry]:
    member = saved.getmember(name)
    # Older engines write a layer once and name it again by a link.
    file = saved.extractfile(member)
    assert file is not None
    entries = {}
    with tarfile.open(fileobj=file) as layer:
        for one in layer:
            entries[one.name] = Entry(
                kind=one.type.decode("ascii"),
                content=_digest(layer, one) if one.isreg() else one.linkname,
                mode=one.mode,
                owner=(one.uid, one.gid),
                mtime_s=int(one.mtime),
            )
    return entries


def _digest(layer: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = layer.extractfile(member)
    assert file is not None
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def compare(one: list[Layer], other: list[Layer], *, n_base_layers: int = N_BASE_LAYERS) -> Comparison:
    """Compare layer by layer; a path that only one of them has differs."""
    n_same = n_times = 0
    ours: list[str] = []
    base: list[str] = []
    for index in range(max(len(one), len(other))):
        left = one[index] if index < len(one) else {}
        right = other[index] if index < len(other) else {}
        told = base if index < n_base_layers else ours
        for path in sorted(left.keys() | right.keys()):
            what = _difference(left.get(path), right.get(path))
            if what is not None:
                told.append(f"layer {index}: {path}: {what}")
            elif index >= n_base_layers:
                n_same += 1
                n_times += left[path].mtime_s != right[path].mtime_s
    return Comparison(n_same=n_same, differing=tuple(ours), differing_in_base=tuple(base), n_times=n_times)


def _difference(left: Entry | None, right: Entry | None) -> str | None:
    if left is None:
        return "only in the second"
    if right is None:
        return "only in the first"
    if left.is_same(right):
        return None
    fields = ("kind", "content", "mode", "owner")
    return ", ".join(field for field in fields if getattr(left, field) != getattr(right, field))


def main() -> int:
    """Tell the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--base-layers", type=int, default=N_BASE_LAYERS, help="how many layers are the base's")
    parsed = parser.parse_args()
    try:
        found = compare(layers_of(parsed.one), layers_of(parsed.other), n_base_layers=parsed.base_layers)
    except NoImageError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{found.n_same} paths that our build adds are the same, {len(found.differing)} differ", end="")
    print(f"; {found.n_times} of the same differ in their time" if found.n_times else "")
    for line in found.differing:
        print(f"  {line}")
    print(f"{len(found.differing_in_base)} paths of the base differ")
    for line in found.differing_in_base:
        print(f"  {line}")
    return 1 if found.differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
