from __future__ import annotations

import stat
from pathlib import Path

import pytest

from site_agent.enrolment.errors import KeyDamagedError, KeyMissingError, KeyPermissionsError
from site_agent.enrolment.keystore import KeyStore
from site_agent.folder import SiteFolder


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return SiteFolder(root=tmp_path / "site")


@pytest.fixture
def keys(folder: SiteFolder) -> KeyStore:
    store = KeyStore(folder)
    store.ensure_keys()
    return store


def test_ensure_keys_makes_two_private_keys(keys: KeyStore, folder: SiteFolder) -> None:
    assert stat.S_IMODE(folder.keys_dir.stat().st_mode) == 0o700
    assert {path.name for path in folder.keys_dir.iterdir()} == {"signing.pem", "tls.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.keys_dir.iterdir()} == {0o600}
    assert keys.load_tls_key().public_key() != _public_key(keys)


def test_ensure_keys_again_keeps_the_keys(keys: KeyStore, folder: SiteFolder) -> None:
    before = {path.name: path.read_bytes() for path in folder.keys_dir.iterdir()}
    keys.ensure_keys()
    assert {path.name: path.read_bytes() for path in folder.keys_dir.iterdir()} == before


def test_ensure_keys_after_half_an_attempt_makes_the_missing_one(keys: KeyStore, folder: SiteFolder) -> None:
    signing = folder.signing_key.read_bytes()
    folder.tls_key.unlink()
    keys.ensure_keys()
    assert folder.signing_key.read_bytes() == signing
    keys.ensure_private()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_load_signer_of_a_key_that_others_can_read_is_refused(mode: int, keys: KeyStore, folder: SiteFolder) -> None:
    folder.signing_key.chmod(mode)
    with pytest.raises(KeyPermissionsError) as caught:
        keys.load_signer()
    assert "chmod 600" in caught.value.advice


def test_ensure_private_of_a_folder_that_others_can_enter_is_refused(keys: KeyStore, folder: SiteFolder) -> None:
    folder.keys_dir.chmod(0o750)
    with pytest.raises(KeyPermissionsError):
        keys.ensure_private()


def test_load_signer_missing_key_says_so(keys: KeyStore, folder: SiteFolder) -> None:
    folder.signing_key.unlink()
    with pytest.raises(KeyMissingError):
        keys.load_signer()


def test_load_signer_damaged_key_says_so_and_shows_no_byte(keys: KeyStore, folder: SiteFolder) -> None:
    folder.signing_key.write_bytes(folder.signing_key.read_bytes()[:60])
    with pytest.raises(KeyDamagedError) as caught:
        keys.load_signer()
    assert "BEGIN" not in str(caught.value)


def _public_key(keys: KeyStore) -> object:
    from fl_protocol.signing.keys import public_key_from_spki

    return public_key_from_spki(keys.load_signer().spki_der)
