from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wardround.client.run_upload import check_spec, read_initial_adapter, read_spec_file, with_adapter
from wardround.errors import NotFoundError, SpecRefusedError, UsageInvalidError


def test_initial_adapter_gives_its_digests_to_the_specification(
    tmp_path: Path, write_adapter: Callable[[Path], None]
) -> None:
    write_adapter(tmp_path)
    adapter = read_initial_adapter(tmp_path)
    section = with_adapter({"adapter": {"rank": 2}}, adapter)["adapter"]
    assert section == {"rank": 2, "layout_sha256": adapter.layout_sha256, "initial_sha256": adapter.initial_sha256}


def test_specification_of_another_adapter_is_refused_with_both_faults(
    tmp_path: Path, write_adapter: Callable[[Path], None]
) -> None:
    write_adapter(tmp_path)
    document = {"adapter": {"layout_sha256": "0" * 64, "initial_sha256": "1" * 64}}
    with pytest.raises(SpecRefusedError) as caught:
        with_adapter(document, read_initial_adapter(tmp_path))
    assert [path for path, _ in caught.value.faults] == ["adapter.layout_sha256", "adapter.initial_sha256"]


@pytest.mark.parametrize("name", ["layout.json", "initial.safetensors"])
def test_damaged_initial_adapter_is_said_to_be_damaged(
    tmp_path: Path, write_adapter: Callable[[Path], None], name: str
) -> None:
    write_adapter(tmp_path)
    (tmp_path / name).write_bytes(b'{"kind": "lora"}')
    with pytest.raises(UsageInvalidError, match="damaged"):
        read_initial_adapter(tmp_path)


def test_adapter_folder_that_is_empty_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_initial_adapter(tmp_path)


def test_check_spec_names_every_fault() -> None:
    with pytest.raises(SpecRefusedError) as caught:
        check_spec({"apiVersion": "wardround/v1", "kind": "Run", "rounds": -1, "colour": "red"})
    paths = {path for path, _ in caught.value.faults}
    assert {"rounds", "colour", "name", "local"} <= paths


@pytest.mark.parametrize("content", ["- a list", "a: [", ""])
def test_run_file_that_holds_no_mapping_is_wrong_usage(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UsageInvalidError):
        read_spec_file(tmp_path / "run.yaml")


def test_run_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_spec_file(tmp_path / "run.yaml")
