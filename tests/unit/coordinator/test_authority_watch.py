"""A rotation reaches a process that has its keys as Kubernetes mounts a Secret: links to links, swapped at once."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.authority_watch import AuthorityWatch
from coordinator.ca.authority import CertificateAuthority, Issuer, create_root
from coordinator.ca.key_files import write_new_file
from coordinator.ca.slot_files import ROOT_KEY, SlotFiles
from fl_protocol.pki.keys import pem_from_private_key
from fl_protocol.pki.tls import certificate_fingerprint, pem_from_certificate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def mount_secret(source: Path, mounted: Path, *, version: str) -> None:
    """What the kubelet does: a folder of this version, and one rename of the link that leads to it.

    Files belong to root and a group that the process is in, so their mode is 0440.
    """
    folder = mounted / f"..{version}"
    shutil.copytree(source, folder)
    for file in folder.iterdir():
        file.chmod(0o440)
    link = mounted / "..data_tmp"
    link.symlink_to(folder.name)
    link.rename(mounted / "..data")
    for file in folder.iterdir():
        if not (mounted / file.name).is_symlink():
            (mounted / file.name).symlink_to(Path("..data") / file.name)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as ``init`` leaves it, as far as the authority goes."""
    folder = tmp_path / "coordinator"
    (folder / "keys").mkdir(parents=True)
    root, key = create_root(consortium="A", now=NOW)
    write_new_file(folder / "keys" / ROOT_KEY, pem_from_private_key(key), mode=0o600)
    write_new_file(folder / "root.pem", pem_from_certificate(root), mode=0o644)
    return folder


def test_secret_that_is_swapped_is_taken_up(installed: Path, tmp_path: Path) -> None:
    pod = tmp_path / "pod"
    (pod / "keys").mkdir(parents=True)
    shutil.copy(installed / "root.pem", pod / "root.pem")
    mount_secret(installed / "keys", pod / "keys", version="1")
    files = SlotFiles(pod / "keys", published_root=pod / "root.pem")
    authority = CertificateAuthority.of_slots(files.load())
    watch = AuthorityWatch(authority, files, refresh=())
    first = authority.root_sha256

    upkeep = SlotFiles(installed / "keys", published_root=installed / "root.pem")
    coming, key = create_root(consortium="A", now=NOW)
    upkeep.write(upkeep.prepare(Issuer(certificate=coming, key=key, root=coming), now=NOW))
    mount_secret(installed / "keys", pod / "keys", version="2")
    watch.look()
    assert authority.root_sha256 == first
    assert len(authority.trusted_der) == 2

    upkeep.write(upkeep.switched(upkeep.read()))
    mount_secret(installed / "keys", pod / "keys", version="3")
    watch.look()
    assert authority.root_sha256 == certificate_fingerprint(coming)


def test_secret_that_lacks_a_key_leaves_the_process_with_what_it_has(installed: Path, tmp_path: Path) -> None:
    pod = tmp_path / "pod"
    (pod / "keys").mkdir(parents=True)
    shutil.copy(installed / "root.pem", pod / "root.pem")
    mount_secret(installed / "keys", pod / "keys", version="1")
    files = SlotFiles(pod / "keys", published_root=pod / "root.pem")
    authority = CertificateAuthority.of_slots(files.load())
    watch = AuthorityWatch(authority, files, refresh=())
    first = authority.root_sha256

    upkeep = SlotFiles(installed / "keys", published_root=installed / "root.pem")
    coming, key = create_root(consortium="A", now=NOW)
    upkeep.write(upkeep.prepare(Issuer(certificate=coming, key=key, root=coming), now=NOW))
    upkeep.write(upkeep.switched(upkeep.read()))
    forgotten = tmp_path / "forgotten"
    shutil.copytree(installed / "keys", forgotten)
    next(forgotten.glob("ca-*.key.pem")).unlink()
    mount_secret(forgotten, pod / "keys", version="2")
    watch.look()
    assert authority.root_sha256 == first
    assert len(authority.trusted_der) == 1
