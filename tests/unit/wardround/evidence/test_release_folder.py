from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fl_protocol.signing.keys import EcdsaSigner, spki_fingerprint
from fl_protocol.signing.signed import sign_body
from wardround.errors import EvidenceFaultError, NotFoundError, UsageInvalidError
from wardround.evidence.release_folder import unpack_release, verify_release_folder

FILES = {"adapter_model.safetensors": b"weights", "README.md": b"# card\n", "evidence/run_spec.json": b"{}"}


def sign_into(folder: Path, manifest: bytes, signer: EcdsaSigner) -> None:
    spki = signer.spki_der
    envelope = {
        "kind": "WR/sig/release",
        "key_sha256": spki_fingerprint(spki),
        "spki": base64.b64encode(spki).decode(),
        "signature": base64.b64encode(sign_body(signer, "WR/sig/release", manifest).signature).decode(),
    }
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "manifest.sig").write_text(json.dumps(envelope))


@pytest.fixture(scope="module")
def signer() -> EcdsaSigner:
    return EcdsaSigner(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def release(tmp_path: Path, signer: EcdsaSigner) -> Path:
    folder = tmp_path / "release"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    entries = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}
        for name, content in FILES.items()
    }
    sign_into(folder, json.dumps({"run_id": "run-a", "files": entries}).encode(), signer)
    return folder


def test_untouched_release_verifies_and_tells_the_key(release: Path, signer: EcdsaSigner) -> None:
    verified = verify_release_folder(release, expected_key_sha256=spki_fingerprint(signer.spki_der))
    assert verified.n_files == 3
    assert verified.manifest["run_id"] == "run-a"
    assert verified.key_sha256 == hashlib.sha256(signer.spki_der).hexdigest()


def test_release_of_another_key_than_expected_is_refused(release: Path) -> None:
    with pytest.raises(EvidenceFaultError, match="another key"):
        verify_release_folder(release, expected_key_sha256="0" * 64)


def alter(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"WEIGHTS")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (alter("adapter_model.safetensors"), "adapter_model.safetensors"),
        (lambda folder: (folder / "README.md").unlink(), r"README\.md is missing"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"pickle"), "pytorch_model.bin"),
        (
            lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b" "),
            "signature",
        ),
        (alter("manifest.sig"), r"manifest\.sig"),
        (lambda folder: (folder / "manifest.sig").write_text("{}"), r"manifest\.sig"),
        (lambda folder: (folder / "manifest.sig").write_text("[]"), r"manifest\.sig"),
    ],
)
def test_release_that_was_changed_is_refused_and_the_file_named(
    release: Path, change: Callable[[Path], object], named: str
) -> None:
    change(release)
    with pytest.raises(EvidenceFaultError, match=named):
        verify_release_folder(release)


def test_release_with_a_link_in_place_of_a_file_is_refused(release: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(FILES["README.md"])
    (release / "README.md").unlink()
    (release / "README.md").symlink_to(elsewhere)
    with pytest.raises(EvidenceFaultError, match="README"):
        verify_release_folder(release)


def test_manifest_that_names_a_file_outside_of_the_folder_is_refused(release: Path, signer: EcdsaSigner) -> None:
    sign_into(release, json.dumps({"files": {"../secret": {"sha256": "0" * 64, "n_bytes": 1}}}).encode(), signer)
    with pytest.raises(EvidenceFaultError, match="outside"):
        verify_release_folder(release)


def test_folder_without_manifest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        verify_release_folder(tmp_path)


def test_archive_is_unpacked_into_a_new_folder_that_verifies(release: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", release))
    unpack_release(archive, tmp_path / "unpacked")
    assert verify_release_folder(tmp_path / "unpacked").n_files == 3


def test_archive_is_not_unpacked_over_something(release: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", release))
    with pytest.raises(UsageInvalidError, match="not empty"):
        unpack_release(archive, release)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..\\outside"])
def test_archive_with_a_path_that_leaves_the_folder_is_refused_whole(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("fine", b"")
        packed.writestr(name, b"")
    with pytest.raises(EvidenceFaultError):
        unpack_release(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(EvidenceFaultError):
        unpack_release(tmp_path / "bad.zip", tmp_path / "target")
