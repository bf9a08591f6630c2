from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from coordinator.default_file import DEFAULT_FILE
from coordinator.services.permissions import Role
from coordinator.settings import (
    CoordinatorSettings,
    RoleName,
    SettingsInvalidError,
    load_settings,
    unknown_environment_sections,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "coordinator.yaml"
    path.write_text(text)
    return path


def test_default_file_names_every_key_and_means_the_defaults(tmp_path: Path) -> None:
    text = DEFAULT_FILE.format(
        consortium='"A, B: C"',
        database_url="sqlite:///coordinator.db",
        password_file="null",
        root_file="null",
        rest_port=8443,
        gateway_port=8444,
        enrolment_port=8445,
        http1_port=8446,
        enrolment_http1_port=8447,
        metrics_port=9464,
    )
    settings = load_settings(written(tmp_path, text))
    assert settings == CoordinatorSettings(consortium="A, B: C")
    for name, section in settings.model_dump().items():
        assert f"\n{name}:" in text
        for key in section if isinstance(section, dict) else ():
            assert f"\n  {key}:" in text


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_GATEWAY__PORT", "443")
    settings = load_settings(written(tmp_path, "gateway: {port: 1, host: 0.0.0.0}"))
    assert (settings.gateway.port, settings.gateway.host) == (443, "0.0.0.0")


def test_every_fault_is_listed_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_REST__PROT", "1")
    with pytest.raises(SettingsInvalidError) as caught:
        load_settings(written(tmp_path, "gateway: {port: many}\ndriver: {poll_s: 0}\nextra: 1\n"))
    keys = {fault.partition(":")[0] for fault in caught.value.faults}
    assert keys == {"rest.prot", "gateway.port", "driver.poll_s", "extra"}
    assert caught.value.code == "settings-invalid"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "1: x\n"])
def test_file_that_is_no_mapping_of_sections_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsInvalidError):
        load_settings(written(tmp_path, text))
    with pytest.raises(SettingsInvalidError):
        load_settings(tmp_path / "missing.yaml")


def test_variables_of_other_sections_are_reported() -> None:
    environment = {
        "WARDROUND_REST__PORT": "1",
        "WARDROUND_RUNNER__KIND": "process",
        "WARDROUND_STATE_DIR": "x",
        "A__B": "",
    }
    assert unknown_environment_sections(environment) == ("WARDROUND_RUNNER__KIND",)


def test_roles_of_the_settings_are_the_roles() -> None:
    assert set(get_args(RoleName)) == {role.value for role in Role}


@pytest.mark.parametrize(
    "oidc",
    [
        {"issuer": "http://login.example", "audience": "a", "role_map": {"x": "admin"}},
        {"issuer": "https://user@login.example", "audience": "a", "role_map": {"x": "admin"}},
        {"issuer": "https://login.example?x", "audience": "a", "role_map": {"x": "admin"}},
        {"issuer": "https://login.example", "role_map": {"x": "admin"}},
        {"issuer": "https://login.example", "audience": "a"},
        {"issuer": "https://login.example", "audience": "a", "role_map": {"x": "king"}},
        {"issuer": "https://login.example", "audience": "a", "role_map": {"x": "admin"}, "clock_skew_s": 3600},
    ],
)
def test_identity_provider_that_cannot_be_meant_is_refused(tmp_path: Path, oidc: dict[str, object]) -> None:
    with pytest.raises(SettingsInvalidError):
        load_settings(written(tmp_path, yaml.safe_dump({"oidc": oidc})))
