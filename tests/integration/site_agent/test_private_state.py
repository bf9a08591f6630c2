"""SCAFFOLD's control variates at agents that die, repeat a round or are left out: only a counted round's is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from fl_protocol.codec.clipping import clip_l2
from fl_protocol.folds.control_variate import control_of, control_step
from fl_protocol.folds.public_state import PublicState
from fl_protocol.ids import RunId
from fl_protocol.spec.run_spec import parse_run_spec
from fl_protocol.tensors.safetensors_io import bytes_from_tensors, tensors_from_bytes
from site_agent.db.models import RunLedgerRow
from site_agent.db.tx import open_site_db
from site_agent.jobs.job_dir import (
    GLOBAL_FILE,
    NEXT_PRIVATE_FILE,
    PRIVATE_FILE,
    SITE_FOLDER,
    JobResult,
    JobSpec,
    ProgressLine,
)
from site_agent.link import instructions as asked
from tests.support.agent_fakes import LAYOUT, FakeRunner

FederationOf = Callable[..., Any]
RUN_ID = RunId("run-" + "b" * 26)

SCAFFOLD = {"local.rule": "scaffold", "local.optimizer": "sgd", "local.schedule": "constant"}


class ScaffoldRunner(FakeRunner):
    """A trainer whose update follows from the job's seed, and whose control variate follows from that."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int, np.ndarray | None]] = []
        """Of each training job: round, attempt, and the c_k that lay in its folder."""
        self.left: dict[tuple[int, int], np.ndarray] = {}
        """By round and attempt: the c_k' that it left there."""

    async def run_training_job(
        self, job_dir: Path, job: JobSpec, *, on_progress: Callable[[ProgressLine], None]
    ) -> JobResult:
        self.spoils = lambda raw: self._add_control(raw, job_dir, job)
        return await super().run_training_job(job_dir, job, on_progress=on_progress)

    def _add_control(self, raw: dict[str, np.ndarray], job_dir: Path, job: JobSpec) -> None:
        if job.kind.value != "train":
            return
        spec = parse_run_spec(job.run_spec or {})
        state = PublicState.from_bytes((job_dir / GLOBAL_FILE).read_bytes())
        private = job_dir / SITE_FOLDER / PRIVATE_FILE
        own = tensors_from_bytes(private.read_bytes())["own_control"] if private.exists() else None
        self.found.append((job.round_index, job.round_attempt, own))
        update, _ = clip_l2(raw["adapter_update"], spec.privacy.clip_norm)
        control = LAYOUT.flatten(control_of(state.server, LAYOUT))
        raw["control_update"] = control_step(update, control, spec=spec, round_index=job.round_index)
        after = raw["control_update"] + (np.float32(0) if own is None else own)
        self.left[job.round_index, job.round_attempt] = after
        (job_dir / SITE_FOLDER / NEXT_PRIVATE_FILE).write_bytes(bytes_from_tensors({"own_control": after}))


def scaffold_federation(federation_of: FederationOf, **options: object) -> Any:
    federation = federation_of(changes=SCAFFOLD, **options)
    for site in federation.sites.values():
        site.runner = ScaffoldRunner()
    return federation


def assert_found_what_the_round_before_left(site: Any, *, last_round: int) -> None:
    runner = site.runner
    for round_index, _, own in runner.found:
        if round_index == 0:
            assert own is None
        else:
            # Every round here was committed in its attempt 0.
            assert np.array_equal(own, runner.left[round_index - 1, 0])
    assert {round_index for round_index, *_ in runner.found} == set(range(last_round + 1))


async def test_control_variate_of_a_counted_round_is_the_next_rounds(federation_of: FederationOf) -> None:
    federation = scaffold_federation(federation_of, rounds=3)
    await federation.run_to_the_end()
    for site in federation.sites.values():
        assert_found_what_the_round_before_left(site, last_round=2)
    # All sites were counted in every round: c is the mean of the c_k (they have as many records, and the fold checked).
    own = np.mean([site.runner.left[2, 0].astype(np.float64) for site in federation.sites.values()], axis=0)
    control = LAYOUT.flatten(control_of(federation.coordinator.state.server, LAYOUT))
    np.testing.assert_allclose(control, own, atol=1e-3 * np.abs(own).max())


@pytest.mark.parametrize("has_arrived", [False, True])
@pytest.mark.parametrize("call", ["ready", "M1", "M5", "M7", "M9", "acknowledge"])
async def test_site_that_dies_at_a_call_keeps_the_control_variate_of_the_round_that_counted_it(
    federation_of: FederationOf, call: str, has_arrived: bool
) -> None:
    federation = scaffold_federation(federation_of, rounds=2)
    dying = federation.sites["beta"]
    dying.client.dies_at = (call, has_arrived)
    await federation.run_to_the_end()
    assert dying.n_deaths == 1
    assert_found_what_the_round_before_left(dying, last_round=1)


async def test_round_that_is_repeated_starts_from_the_control_variate_of_before(federation_of: FederationOf) -> None:
    federation = scaffold_federation(federation_of, n_sites=3, rounds=3)
    coordinator = federation.coordinator
    await federation.run(lambda: coordinator.round_index == 1)
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 3)
    coordinator.holds_back = None
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.open_round()
    await federation.run_to_the_end()
    for site in federation.sites.values():
        runner = site.runner
        found = {(index, attempt): own for index, attempt, own in runner.found}
        assert np.array_equal(found[1, 0], runner.left[0, 0])
        assert np.array_equal(found[1, 1], runner.left[0, 0]), "what attempt 0 left was thrown away"
        assert np.array_equal(found[2, 0], runner.left[1, 1]), "what the committed attempt left was taken"


async def test_site_whose_upload_is_not_in_the_sum_goes_on_from_the_control_variate_of_before(
    federation_of: FederationOf,
) -> None:
    federation = scaffold_federation(federation_of, n_sites=4, rounds=2)
    coordinator, everybody = federation.coordinator, federation.coordinator.site_ids
    coordinator.holds_back = asked.RelaySurvivors
    await federation.run(lambda: len(coordinator.uploads) == 4)
    coordinator.holds_back = None
    # Attempt 1 is summed without delta, which uploaded in attempt 0 and was left out; it comes back for round 1.
    coordinator.abandons.append(coordinator.round)
    coordinator.round_attempt = 1
    coordinator.site_ids = everybody[:3]
    open_round = coordinator.open_round

    def open_for_everybody() -> None:
        coordinator.site_ids = everybody
        open_round()

    open_round()
    coordinator.open_round = open_for_everybody
    delta = federation.sites.pop("delta")
    await federation.run(lambda: coordinator.round_index == 1)
    federation.sites["delta"] = delta
    await federation.run_to_the_end()
    of_delta = {(index, attempt): own for index, attempt, own in delta.runner.found}
    assert of_delta == {(0, 0): None, (1, 0): None}
    of_alpha = {(index, attempt): own for index, attempt, own in federation.sites["alpha"].runner.found}
    assert np.array_equal(of_alpha[1, 0], federation.sites["alpha"].runner.left[0, 1])


async def test_run_that_the_steward_withdrew_from_leaves_no_private_state(federation_of: FederationOf) -> None:
    federation = scaffold_federation(federation_of, rounds=3)
    beta = federation.sites["beta"]

    def kept(site: Any) -> list[Path]:
        return [path for path in site.folder.glob("private/**/*") if path.is_file()]

    await federation.run(lambda: federation.coordinator.round_index == 1 and bool(kept(beta)))
    db = open_site_db(beta.folder / "site.db")

    def withdraw(session: Session) -> None:
        session.get_one(RunLedgerRow, RUN_ID).state = "withdrawn"

    db.run_tx("withdraw", withdraw)
    db.close()
    await federation.run(lambda: not kept(beta))
    assert kept(federation.sites["alpha"]), "the others go on"


@pytest.mark.parametrize("has_arrived", [False, True])
async def test_site_that_dies_when_the_last_result_is_settled_knows_that_the_run_is_over(
    federation_of: FederationOf, has_arrived: bool
) -> None:
    federation = scaffold_federation(federation_of, rounds=1)
    beta = federation.sites["beta"]
    await federation.run(lambda: "beta" in federation.coordinator.acknowledged.get(0, {}))
    assert list(beta.folder.glob("private/*/*.safetensors"))
    beta.client.dies_at = ("acknowledge", has_arrived)
    await federation.run_to_the_end()
    assert beta.n_deaths == 1

    def is_over() -> bool:
        return not any(path.is_file() for path in beta.folder.glob("private/**/*"))

    await federation.run(is_over)
    db = open_site_db(beta.folder / "site.db")
    assert db.run_read("state", lambda session: session.get_one(RunLedgerRow, RUN_ID).state) == "completed"
    db.close()


async def test_run_that_is_over_leaves_no_private_state(federation_of: FederationOf) -> None:
    federation = scaffold_federation(federation_of, rounds=1)
    kept: list[Path] = []

    def look() -> bool:
        kept.extend(path for site in federation.sites.values() for path in site.folder.glob("private/*/*.safetensors"))
        return federation.coordinator.done.is_set()

    await federation.run(look)
    assert kept, "there was something to delete"
    assert {oct(path.stat().st_mode & 0o777) for path in kept if path.exists()} <= {"0o600"}

    def is_gone() -> bool:
        return not any(
            path.is_file() for site in federation.sites.values() for path in site.folder.glob("private/**/*")
        )

    await federation.run(is_gone)
