"""Make a signed bundle of all that an installation without internet needs.

    openssl ecparam -name prime256v1 -genkey -noout -out release.key.pem        # once; keep it offline
    openssl ec -in release.key.pem -pubout -out release.pub.pem                 # hand this out, by another way
    python deploy/offline/make_bundle.py --key release.key.pem --out dist \
        wardround/site-agent:0.1.0 wardround/trainer:0.1.0-cuda

It writes `dist/wardround-0.1.0-bundle.tar`: images (`docker save`), charts, what compose and systemd need, Python's
wheels (`--wheels-for`), documents, `SHA256SUMS` and its signature, and `install.sh`, which verifies before it loads.
Signed is the list of checksums, by ECDSA on P-256 with SHA-256: every OpenSSL of the last ten years verifies it
(docs/decisions/0056).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[2]
CHECKSUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
CHUNK_BYTES = 1 << 20
# What compose, systemd and a person need beside the images: below the repository, and below the bundle.
FILES = {
    "deploy/compose": "compose",
    "docker-compose.yml": "compose/docker-compose.yml",
    "deploy/systemd": "systemd",
    "deploy/docker/locks": "locks",
    "docs/operating": "docs",
    "LICENSE": "LICENSE",
}


class KeyUnusableError(Exception):
    """The key cannot sign a bundle."""


class StepFailedError(Exception):
    """A program that the bundle is made with said no."""


def load_key(path: Path, *, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """The signing key.

    Raises:
        KeyUnusableError: no key on P-256 in PEM, or another passphrase.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=passphrase)
    except (OSError, ValueError, TypeError) as error:
        raise KeyUnusableError(f"{path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyUnusableError(f"{path}: not a key on P-256; the head of this program says how to make one")
    return key


def checksums(folder: Path) -> str:
    """The list as sha256sum writes it: digest, two spaces, path; sorted by path, without the list and its signature."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (CHECKSUMS, SIGNATURE):
            lines.append(f"{_sha256(path)}  {name}\n")
    return "".join(lines)


def seal(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the list of checksums and its signature; whatever changes afterwards is found by install.sh."""
    text = checksums(folder).encode()
    (folder / CHECKSUMS).write_bytes(text)
    (folder / SIGNATURE).write_bytes(key.sign(text, ec.ECDSA(hashes.SHA256())))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_name_of(tag: str) -> str:
    """The file that holds an image: `wardround/trainer:0.1.0-cpu` is `images/wardround-trainer-0.1.0-cpu.tar.gz`."""
    return f"images/{tag.replace('/', '-').replace(':', '-')}.tar.gz"


def save_images(tags: Sequence[str], folder: Path) -> None:
    """Write each image, and `IMAGES`, which says which file holds which."""
    (folder / "images").mkdir()
    lines = []
    for tag in tags:
        saving = subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE)  # noqa: S603, S607 - ours
        assert saving.stdout is not None
        with (folder / file_name_of(tag)).open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            shutil.copyfileobj(saving.stdout, packed, CHUNK_BYTES)
        if saving.wait():
            raise StepFailedError(f"docker save {tag} failed; build the images first: make images")
        lines.append(f"{file_name_of(tag)} {tag}\n")
    (folder / "IMAGES").write_text("".join(lines))


def copy_files(folder: Path) -> None:
    """Copy what belongs beside the images."""
    for source, target in FILES.items():
        origin, copy = ROOT / source, folder / target
        if origin.is_dir():
            shutil.copytree(origin, copy, dirs_exist_ok=True)
        elif origin.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, copy)
    shutil.copyfile(ROOT / "deploy/offline/install.sh", folder / "install.sh")


def package_charts(folder: Path, *, helm: str | None) -> None:
    """Package the charts, where Helm is there."""
    if helm is None:
        print("charts are left out, since Helm is not there: put it on PATH, or say --helm", file=sys.stderr)
        return
    (folder / "charts").mkdir()
    for chart in sorted(path.parent for path in (ROOT / "helm").glob("*/Chart.yaml")):
        _run([helm, "package", str(chart), "--destination", str(folder / "charts")])


def _found_helm() -> str | None:
    # `make setup` leaves Helm there.
    return shutil.which("helm") or shutil.which("helm", path=str(ROOT / ".wardround" / "tools"))


def collect_wheels(folder: Path, locks: Sequence[str], *, links: Path | None) -> None:
    """Fetch every wheel of the locks, each held against its digest, and build the project's own."""
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip"]
    for lock in locks:
        source = ROOT / "deploy/docker/locks" / f"{lock}.txt"
        command = [*pip, "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command += ["--dest", str(wheels), "--requirement", str(source)]
        _run(command if links is None else [*command, "--find-links", str(links)])
    _run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)])


def pack(folder: Path, to: Path) -> None:
    """One file of the folder, what verifies it first; not compressed, since what is large in it is."""
    first = [CHECKSUMS, SIGNATURE, "install.sh"]
    with tarfile.open(to, "w") as bundle:
        for name in [*first, *sorted(path.name for path in folder.iterdir() if path.name not in first)]:
            bundle.add(folder / name, arcname=f"{folder.name}/{name}", filter=_without_its_maker)


def _without_its_maker(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.name.endswith(".sh") else 0o644
    return member


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - the command is ours
    if done.returncode:
        raise StepFailedError(f"{' '.join(command[:4])} ... failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def make(parsed: argparse.Namespace) -> Path:
    """Make the bundle that the arguments describe; returns its path."""
    passphrase = parsed.passphrase_file.read_bytes().strip() if parsed.passphrase_file else None
    key = load_key(parsed.key, passphrase=passphrase)
    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    parsed.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parsed.out) as scratch:
        folder = Path(scratch) / f"wardround-{version}"
        folder.mkdir()
        (folder / "VERSION").write_text(version + "\n")
        copy_files(folder)
        save_images(parsed.images, folder)
        package_charts(folder, helm=parsed.helm or _found_helm())
        if parsed.wheels_for:
            collect_wheels(folder, parsed.wheels_for, links=parsed.links)
        seal(folder, key)
        to: Path = parsed.out / f"wardround-{version}-bundle.tar"
        pack(folder, to)
    return to


def main() -> int:
    """Make a bundle, and tell its size and checksum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="tags of images that the engine has")
    parser.add_argument("--key", type=Path, required=True, help="the signing key, in PEM")
    parser.add_argument("--passphrase-file", type=Path, help="a file with the key's passphrase")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--helm", help="the program Helm; from PATH without it")
    parser.add_argument(
        "--wheels-for", nargs="*", metavar="LOCK", help="coordinator, site-agent, trainer-cpu, trainer-cuda"
    )
    parser.add_argument("--links", type=Path, help="a folder with wheels that no index has, such as torch's for CPUs")
    parsed = parser.parse_args()
    try:
        bundle = make(parsed)
    except (KeyUnusableError, StepFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{bundle}: {bundle.stat().st_size / 1e6:.0f} MB, sha256 {_sha256(bundle)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
