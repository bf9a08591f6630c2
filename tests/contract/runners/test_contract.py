"""What every runner promises, whichever way it runs a trainer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from site_agent.errors import JobFailedError, JobTimedOutError, TrainerDiedError
from tests.contract.runners.applying import CASES, NOT_APPLYING, RUNNERS
from tests.contract.runners.conftest import ROOT, Site, job_of


def require(site: Site, case: str) -> None:
    """Pass over a case that says nothing of this runner, with the reason of the table."""
    reason = NOT_APPLYING.get((site.kind, case))
    if reason is not None:
        pytest.skip(f"does not apply to {site.kind}: {reason}")


def test_table_of_what_does_not_apply_names_cases_and_runners() -> None:
    assert {runner for runner, _ in NOT_APPLYING} <= set(RUNNERS)
    assert {case for _, case in NOT_APPLYING} <= set(CASES)


def test_manual_has_the_same_table() -> None:
    page = (ROOT / "docs" / "operating" / "runners.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for (runner, case), reason in NOT_APPLYING.items():
        assert f"| `{runner}` | {case} | {reason} |" in rows
    assert sum(row.count("|") == 4 and row.split("|")[2].strip() in CASES for row in rows) == len(NOT_APPLYING)


async def test_success_gives_the_result_and_leaves_the_payload(site: Site) -> None:
    folder = site.job_dir("succeed")
    result = await site.run(folder)
    assert (result.records, result.patients, result.held_out_records) == (120, 60, 12)
    assert (folder / "payload.safetensors").read_bytes() == b"payload"


async def test_progress_is_told_once_and_in_order(site: Site) -> None:
    await site.run(site.job_dir("succeed"))
    assert [(line.state, line.step, line.steps) for line in site.heard] == [
        ("training", 0, 9),
        ("training", 1, 9),
        ("training", 2, 9),
    ]


async def test_second_job_of_a_run_follows_the_first(site: Site) -> None:
    await site.run(site.job_dir("succeed"))
    result = await site.run(site.job_dir("succeed", name="1.0"))
    assert result.records == 120


async def test_typed_failure_keeps_code_and_advice(site: Site) -> None:
    with pytest.raises(JobFailedError) as failed:
        await site.run(site.job_dir("fail"))
    assert (failed.value.failure_code, failed.value.advice) == ("data-malformed", "mend it")
    assert "record 7" in str(failed.value)


async def test_crash_is_told_with_its_exit_code_after_lives_in_vain(site: Site) -> None:
    folder = site.job_dir("crash")
    with pytest.raises(TrainerDiedError) as died:
        await site.run(folder, n_lives_in_vain=2)
    assert died.value.facts["exit_code"] == 9
    assert "log" in died.value.advice
    assert (folder / "starts").read_text() == "xx"


async def test_trainer_that_is_killed_once_is_started_again_and_ends_its_job(site: Site) -> None:
    folder = site.job_dir("crash-once")
    result = await site.run(folder)
    assert result.records == 120
    assert (folder / "starts").read_text() == "xx"
    # The first life's line is not told again.
    assert [line.step for line in site.heard] == [1, 2]


async def test_out_of_memory_is_told_as_such(site: Site) -> None:
    # A process that the kernel kills for memory ends by SIGKILL; where a runner sets no limit, a test does the killing.
    folder = site.job_dir("fill-memory" if site.has_memory_limit else "killed")
    with pytest.raises(TrainerDiedError) as died:
        await site.run(folder, n_lives_in_vain=1)
    assert died.value.facts["exit_code"] in {-9, 137}
    assert "memory" in died.value.advice
    assert "local.batch_size" in died.value.advice


async def test_job_over_its_time_is_stopped_with_its_children(site: Site) -> None:
    folder = site.job_dir("hang")
    with pytest.raises(JobTimedOutError):
        await site.run(folder, timeout_s=site.hang_timeout_s)
    await ends(site, folder)


async def test_cancelled_job_is_stopped_and_the_next_one_runs(site: Site) -> None:
    folder = site.job_dir("hang")
    runner = site.make()
    task = asyncio.create_task(runner.run_training_job(folder, job_of("0.0"), on_progress=site.heard.append))
    await text_in(folder / "child.pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await runner.stop()
    await ends(site, folder)
    (folder / "job.json").unlink()
    result = await site.run(site.job_dir("succeed", name="1.0"))
    assert result.records == 120


async def test_trainer_that_says_nothing_is_killed_and_started_again(site: Site) -> None:
    folder = site.job_dir("hang-once")
    result = await site.run(folder, idle_timeout_s=3.0)
    assert result.records == 120
    assert (folder / "starts").read_text() == "xx"


async def test_job_that_was_closed_before_gives_its_result_without_a_trainer(site: Site) -> None:
    folder = site.job_dir("succeed")
    first = await site.run(folder)
    assert await site.run(folder) == first
    assert (folder / "behaviour.json").exists()
    assert (folder / "starts").read_text() == "x"


async def test_trainer_has_no_network_as_it_finds_itself(site: Site, listener: tuple[str, int]) -> None:
    require(site, "no network")
    if not site.is_without_network:
        pytest.skip("this user may not make a network namespace; as root, and in a container, this runs")
    folder = site.job_dir("look", reach=list(listener))
    await site.run(folder)
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["interfaces"] == ["lo"]
    assert seen["n_routes"] == 0
    assert seen["connect"] != ""


async def test_listener_that_no_trainer_reaches_can_be_reached(listener: tuple[str, int]) -> None:
    # Otherwise the test above proves nothing.
    _, writer = await asyncio.open_connection(*listener)
    writer.close()


async def test_trainer_sees_no_token_and_no_proxy(site: Site) -> None:
    folder = site.job_dir("look")
    await site.run(folder)
    seen = json.loads((folder / "seen.json").read_text())
    assert not {"HF_TOKEN", "https_proxy"} & set(seen["environment"])


async def test_root_is_read_only_as_the_trainer_finds_it(site: Site) -> None:
    require(site, "read-only root")
    folder = site.job_dir("look")
    await site.run(folder)
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["write_root"] in {"OSError", "PermissionError"}
    assert seen["uid"] == 10001
    assert seen["capabilities"].strip("0") == ""
    assert seen["no_new_privileges"] == "1"


async def text_in(path: Path) -> str:
    """What a trainer writes to a file, once it is there."""
    for _ in range(1500):
        if text := await asyncio.to_thread(lambda: path.read_text() if path.exists() else ""):
            return text
        await asyncio.sleep(0.02)
    message = f"{path.name} was not written"
    raise AssertionError(message)


async def ends(site: Site, folder: Path) -> None:
    """Whether the trainer of a job, and what it started, is gone soon: the kernel delivers a signal when it pleases."""
    numbers = [int((folder / name).read_text()) for name in ("child.pid", "pids")]
    for _ in range(250):
        if not site.is_at_work(numbers):
            return
        await asyncio.sleep(0.02)
    message = "the trainer goes on"
    raise AssertionError(message)
