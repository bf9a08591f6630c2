from __future__ import annotations

from pathlib import Path

import pytest

from site_agent.settings import SettingsInvalidError, SettingsMissingError, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("WARDROUND_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "site.yaml").write_text(text)
    return tmp_path


def faults(tmp_path: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsInvalidError) as caught:
        load_settings(write(tmp_path, text))
    return caught.value.faults


def test_load_settings_empty_file_has_defaults_relative_to_the_folder(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "# nothing\nlog:\n"))
    assert settings.policy_path == tmp_path / "policy.yaml"
    assert (settings.runner.kind, settings.runner.threads, settings.peers) == ("process", None, {})
    assert settings.state_dir == tmp_path


def test_load_settings_reads_paths_and_pins(tmp_path: Path) -> None:
    text = (
        "policy: /etc/wardround/policy.yaml\n"
        f'peers:\n  charite: "SHA256:{"AB" * 32}"\n'
        "base_models: {smollm2: {path: models/smollm2}}\n"
    )
    settings = load_settings(write(tmp_path, text))
    assert settings.policy_path == Path("/etc/wardround/policy.yaml")
    assert settings.peers == {"charite": "ab" * 32}
    assert settings.base_model_path("smollm2") == tmp_path / "models" / "smollm2"
    assert settings.base_model_path("other") is None


def test_load_settings_environment_overrides_one_key_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_RUNNER__THREADS", "3")
    monkeypatch.setenv("WARDROUND_STATE_DIR", "/elsewhere")
    settings = load_settings(write(tmp_path, "runner: {threads: 8, device: cpu}\n"))
    assert (settings.runner.threads, settings.runner.device) == (3, "cpu")
    assert settings.state_dir == tmp_path


def test_load_settings_processes_are_a_number_or_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(write(tmp_path, "")).runner.processes == 1
    assert load_settings(write(tmp_path, "runner: {processes: auto}\n")).runner.processes == "auto"
    monkeypatch.setenv("WARDROUND_RUNNER__PROCESSES", "4")
    assert load_settings(write(tmp_path, "runner: {processes: auto}\n")).runner.processes == 4


def test_load_settings_unknown_keys_are_all_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_LOG__LEVLE", "debug")
    found = faults(tmp_path, "runer: {}\nrunner: {thread: 3}\nstate_dir: /tmp\n")
    assert {fault.partition(":")[0] for fault in found} == {"runer", "runner.thread", "state_dir", "log.levle"}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("peers: {St Mary: abc}\n", "peers.St Mary"),
        ("peers: {charite: abc}\n", "peers.charite"),
        ("runner: {kind: podman}\n", "runner.kind"),
        ("runner: {threads: 0}\n", "runner.threads"),
        ("runner: {processes: 0}\n", "runner.processes"),
        ("runner: {processes: many}\n", "runner.processes"),
        ("runner: {processes: true}\n", "runner.processes"),
        ("log: {level: loud}\n", "log.level"),
        ("base_models: {a: {sha256: b}}\n", "base_models.a.path"),
    ],
)
def test_load_settings_wrong_value_names_its_key(text: str, path: str, tmp_path: Path) -> None:
    assert path in {fault.partition(":")[0] for fault in faults(tmp_path, text)}


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "3: 4\n"])
def test_load_settings_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    assert len(faults(tmp_path, text)) == 1


def test_load_settings_without_a_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsMissingError, match="enrol"):
        load_settings(tmp_path)
