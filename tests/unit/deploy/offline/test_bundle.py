"""A bundle made here, and what install.sh says of it, with sh, openssl and sha256sum, as a hospital has them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

ROOT = Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    name = "deploy_script_make_bundle"
    spec = importlib.util.spec_from_file_location(name, ROOT / "deploy/offline/make_bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path.with_suffix(".pub")


@pytest.fixture
def bundle(script: ModuleType, tmp_path: Path) -> tuple[Path, Path]:
    """A sealed folder, and the key that it is verified with. Its images are no images: nothing is loaded here."""
    folder = tmp_path / "wardround-0.1.0"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "agent.tar.gz").write_bytes(bytes(range(256)) * 64)
    (folder / "IMAGES").write_text("images/agent.tar.gz wardround/site-agent:0.1.0\n")
    (folder / "VERSION").write_text("0.1.0\n")
    script.copy_files(folder)
    public = write_key(tmp_path / "release.pem", ec.generate_private_key(ec.SECP256R1()))
    script.seal(folder, script.load_key(tmp_path / "release.pem"))
    return folder, public


def verified(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(folder / "install.sh"), "--key", str(public), "--verify-only"]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_bundle_as_it_was_made_is_verified(bundle: tuple[Path, Path]) -> None:
    done = verified(*bundle)
    assert done.returncode == 0, done.stderr
    assert "and whole:" in done.stdout
    assert "Wardround 0.1.0" in done.stdout


def test_list_is_what_sha256sum_understands(bundle: tuple[Path, Path]) -> None:
    folder, _ = bundle
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def alter_one_byte(folder: Path) -> None:
    path = folder / "images" / "agent.tar.gz"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "images" / "agent.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])


def take_away(folder: Path) -> None:
    (folder / "images" / "agent.tar.gz").unlink()


def replace_by_a_link(folder: Path) -> None:
    path = folder / "VERSION"
    path.rename(folder.parent / "VERSION")
    path.symlink_to(folder.parent / "VERSION")


def add(folder: Path) -> None:
    (folder / "images" / "more.tar.gz").write_bytes(b"x")


def alter_and_list_again(folder: Path) -> None:
    alter_one_byte(folder)
    listed = subprocess.run(
        ["sha256sum", "images/agent.tar.gz"], cwd=folder, check=True, capture_output=True, text=True
    )
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in lines if not line.endswith("  images/agent.tar.gz")]
    (folder / "SHA256SUMS").write_text("\n".join([*kept, listed.stdout.strip()]) + "\n")


def cut_the_list(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def cut_the_signature(folder: Path) -> None:
    path = folder / "SHA256SUMS.sig"
    path.write_bytes(path.read_bytes()[:20])


def lose_the_signature(folder: Path) -> None:
    (folder / "SHA256SUMS.sig").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (alter_one_byte, "images/agent.tar.gz is not what was signed"),
        (cut_short, "images/agent.tar.gz is not what was signed"),
        (take_away, "images/agent.tar.gz is missing"),
        (replace_by_a_link, "VERSION is missing"),
        (add, "images/more.tar.gz is not on the signed list"),
        (alter_and_list_again, "is not signed by the key"),
        (cut_the_list, "is not signed by the key"),
        (cut_the_signature, "is not signed by the key"),
        (lose_the_signature, "SHA256SUMS.sig is missing"),
    ],
)
def test_bundle_that_was_altered_is_refused_and_the_fault_named(
    bundle: tuple[Path, Path], damage: Callable[[Path], None], sentence: str
) -> None:
    folder, public = bundle
    damage(folder)
    done = verified(folder, public)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "nothing was loaded" in done.stderr
    assert done.stdout == ""


def test_bundle_of_another_key_is_refused(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = bundle
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    done = verified(folder, other)
    assert done.returncode == 1
    assert "is not signed by the key" in done.stderr


def test_install_without_a_key_or_with_none_says_what_is_needed(bundle: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = bundle
    done = subprocess.run(["sh", str(folder / "install.sh")], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "say --key FILE" in done.stderr
    (tmp_path / "noise").write_text("noise")
    assert "is no public key" in verified(folder, tmp_path / "noise").stderr
    assert "cannot be read" in verified(folder, tmp_path / "absent").stderr


def test_load_key_of_another_kind_is_refused(script: ModuleType, tmp_path: Path) -> None:
    write_key(tmp_path / "p384.pem", ec.generate_private_key(ec.SECP384R1()))
    write_key(tmp_path / "ed25519.pem", ed25519.Ed25519PrivateKey.generate())
    (tmp_path / "noise.pem").write_text("noise")
    for name in ("p384.pem", "ed25519.pem", "noise.pem", "absent.pem"):
        with pytest.raises(script.KeyUnusableError, match=name):
            script.load_key(tmp_path / name)


def test_pack_leaves_no_trace_of_who_made_it(script: ModuleType, bundle: tuple[Path, Path], tmp_path: Path) -> None:
    script.pack(bundle[0], tmp_path / "bundle.tar")
    listed = subprocess.run(
        ["tar", "--list", "--verbose", "--file", tmp_path / "bundle.tar"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert listed
    assert all("root/root" in line for line in listed)
    assert any(line.startswith("-rwxr-xr-x") and line.endswith("wardround-0.1.0/install.sh") for line in listed)
