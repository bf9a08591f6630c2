"""An agent that dies while its trainer works: what of the job folder is there when the round is assigned again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_protocol.ids import SiteId
from site_agent.errors import CoordinatorUnavailableError
from site_agent.jobs.job_dir import (
    CHECKPOINT_FILE,
    CHECKPOINT_FOLDER,
    PAYLOAD_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    JobResult,
    JobSpec,
    write_job,
)
from site_agent.link import instructions as asked
from tests.support import agent_fakes

FederationOf = Callable[..., Any]
BETA = SiteId("beta")


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Deaths:
    """Stands before a site's runner: the first job is cut short, and what each job finds in its folder is kept.

    ``then`` happens in the same instant: what the world is like when the agent is up again.
    """

    def __init__(
        self,
        site: Any,
        *,
        died: type[BaseException],
        after_result: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self.found: list[set[str]] = []
        self.jobs: list[JobSpec] = []
        self._inner = site.runner.run_training_job
        self._died = died
        self._after_result = after_result
        self._then = then
        site.runner.run_training_job = self.run_training_job

    async def run_training_job(self, job_dir: Path, job: JobSpec, **listener: Any) -> JobResult:
        self.found.append(files_in(job_dir))
        self.jobs.append(job)
        if len(self.found) == 1:
            write_job(job_dir, job)
            (job_dir / CHECKPOINT_FOLDER).mkdir()
            (job_dir / CHECKPOINT_FOLDER / CHECKPOINT_FILE).write_bytes(b"where it is")
            (job_dir / PROGRESS_FILE).write_text("{}\n")
            if self._after_result:
                await self._inner(job_dir, job, **listener)
            self._then()
            raise self._died
        result: JobResult = await self._inner(job_dir, job, **listener)
        return result


def died_error(federation: Any) -> type[BaseException]:
    found: type[BaseException] = type(federation).__init__.__globals__["SiteDiedError"]
    return found


def job_folders(federation: Any) -> list[Path]:
    return list((federation.sites[BETA].folder / "jobs").glob("run-*/*.*"))


async def test_same_job_finds_its_checkpoint_and_nothing_else_of_the_first_start(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    deaths = Deaths(federation.sites[BETA], died=died_error(federation))
    await federation.run_to_the_end()
    assert federation.sites[BETA].n_deaths == 1
    first, again = deaths.found[:2]
    assert again - first == {f"{CHECKPOINT_FOLDER}/{CHECKPOINT_FILE}"}
    assert deaths.jobs[0] == deaths.jobs[1]
    # The next round has a folder of its own.
    assert deaths.found[2] == first


async def test_job_that_was_closed_keeps_its_payload(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    deaths = Deaths(federation.sites[BETA], died=died_error(federation), after_result=True)
    await federation.run_to_the_end()
    assert deaths.found[1] - deaths.found[0] == {PAYLOAD_FILE, RESULT_FILE}


async def test_job_on_other_data_finds_no_checkpoint(federation_of: FederationOf, monkeypatch: Any) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    deaths = Deaths(
        federation.sites[BETA],
        died=died_error(federation),
        then=lambda: monkeypatch.setattr(agent_fakes, "DATA_SHA256", "ef" * 32),
    )
    await federation.run(lambda: len(deaths.found) == 2)
    assert [job.data.sha256 for job in deaths.jobs[:2]] == ["cd" * 32, "ef" * 32]
    assert deaths.found[1] == deaths.found[0]


async def test_round_that_is_not_assigned_again_leaves_no_update_behind(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator
    deaths = Deaths(federation.sites[BETA], died=died_error(federation))
    coordinator.instruction_before = coordinator.instruction
    n_idle = [0]

    def gone_after_the_first(site: SiteId, holding: Any) -> Any:
        if site == BETA and deaths.found:
            n_idle[0] += 1
            return asked.Idle(retry_after_s=0.0)
        return coordinator.instruction_before(site, holding)

    coordinator.instruction = gone_after_the_first
    await federation.run(lambda: n_idle[0] > 3)
    assert federation.sites[BETA].n_deaths == 1
    assert job_folders(federation) == []


async def test_folder_waits_for_a_coordinator_that_cannot_be_reached(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    site = federation.sites[BETA]
    n_asked, answers = [0], site.client.poll_assignment

    async def no_answer(**_: object) -> Any:
        n_asked[0] += 1
        message = "away"
        raise CoordinatorUnavailableError(message)

    def cut_off() -> None:
        site.client.poll_assignment = no_answer

    deaths = Deaths(site, died=died_error(federation), then=cut_off)
    await federation.run(lambda: n_asked[0] > 3)
    assert [path.name for path in job_folders(federation)] == ["0.0"]
    site.client.poll_assignment = answers
    await federation.run_to_the_end()
    assert deaths.found[1] - deaths.found[0] == {f"{CHECKPOINT_FOLDER}/{CHECKPOINT_FILE}"}


async def test_new_attempt_of_the_round_starts_from_the_beginning(federation_of: FederationOf) -> None:
    federation = federation_of(n_sites=3, rounds=1)
    coordinator = federation.coordinator

    def abort() -> None:
        coordinator.abandons.append(coordinator.round)
        coordinator.round_attempt = 1
        coordinator.open_round()

    deaths = Deaths(federation.sites[BETA], died=died_error(federation), then=abort)
    await federation.run_to_the_end()
    assert deaths.found[1] == deaths.found[0]
    assert deaths.jobs[0].seed != deaths.jobs[1].seed
    # The last acknowledgement may have cut the last deletions short; the next start makes good for it.
    await federation.run(lambda: not job_folders(federation))
