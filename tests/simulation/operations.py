"""The operations of the simulation: what each does, how hypothesis draws them, how a failing list is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hypothesis import strategies as st

from coordinator.services.change_run_state import RunChange
from coordinator.services.change_site_state import SiteChange
from tests.simulation.invariants import check_end, check_now, check_rest
from tests.simulation.scenario import Scenario
from tests.simulation.world import World

Operation = tuple[Any, ...]
"""The name, then its arguments: numbers only. A site's number is taken modulo the number of sites."""


def _site(world: World, number: int) -> str:
    return world.scenario.names[number % world.scenario.n_sites]


# Time and ordinary life


def advance_time(world: World, seconds: int) -> None:
    world.advance(float(seconds))


def lease_expires(world: World) -> None:
    world.advance(5.1)


def driver_step(world: World) -> None:
    world.drive()


def second_driver_steps(world: World) -> None:
    world.drive(second=True)


def second_driver_dies(world: World) -> None:
    world.kill_second()


def site_steps(world: World, site: int) -> None:
    world.turn(_site(world, site))


def site_trains(world: World, site: int) -> None:
    found = world.sites.get(_site(world, site))
    if found is not None:
        found.trainer.finish()
    world.settle()


def trainer_dies(world: World, site: int) -> None:
    found = world.sites.get(_site(world, site))
    if found is not None:
        found.trainer.finish("died")
    world.settle()


def life_goes_on(world: World) -> None:
    world.live()


_ON_THE_WAY = ("TRAINING", "ADVERTISING", "SHARING", "COLLECTING", "CONFIRMING", "REVEALING", "SUMMED", "FOLDING")


def live_until(world: World, phase: int) -> None:
    """Ordinary life, a piece at a time, until the newest round is in that phase; at most one round."""
    wanted = _ON_THE_WAY[phase % len(_ON_THE_WAY)]
    for _ in range(10):
        if world.phase() == wanted or world.is_over():
            return
        before = world.fingerprint()
        for name in world.scenario.names:
            for _ in range(3):
                if not world.drive():
                    break
                if world.phase() == wanted:
                    return
            found = world.sites.get(name)
            if found is None:
                continue
            found.trainer.finish()
            world.settle()
            world.turn(name)
            if world.phase() == wanted:
                return
        if world.fingerprint() == before:
            return


def quiesce(world: World) -> None:
    world.rest(for_s=60.0)
    check_rest(world)


# The network


def request_lost(world: World, site: int) -> None:
    world.network.faults[_site(world, site)].loses_request = True


def response_lost(world: World, site: int) -> None:
    world.network.faults[_site(world, site)].loses_response = True


def upload_broken(world: World, site: int, chunks: int) -> None:
    world.network.faults[_site(world, site)].breaks_after = chunks


def upload_stalls(world: World, site: int, chunks: int) -> None:
    world.network.faults[_site(world, site)].stalls_after = chunks


def stalled_upload_goes_on(world: World, site: int) -> None:
    for event in world.network.stalled.pop(_site(world, site), []):
        event.set()
    world.settle()


def upload_response_lost(world: World, site: int) -> None:
    world.network.faults[_site(world, site)].loses_upload_response = True


def _replay(world: World, number: int, *, wanted: Callable[[str], bool], sender: str | None = None) -> None:
    held = [call for call in world.network.recorded if wanted(call.method.rpartition("/")[2])]
    if not held:
        return
    # From the newest back: what is fresh does more harm than what is old.
    call = held[-1 - number % len(held)]
    world.loop.create_task(world.network.replay(call, sender=sender or call.site))
    world.settle()


def replay_upload(world: World, number: int) -> None:
    _replay(world, number, wanted=lambda method: method == "UploadBlob")


def replay_message(world: World, number: int) -> None:
    _replay(world, number, wanted=lambda method: method not in {"UploadBlob", "PollAssignment"})


def replay_as_another(world: World, number: int, site: int) -> None:
    _replay(world, number, wanted=lambda method: method != "PollAssignment", sender=_site(world, site))


def old_instruction(world: World, site: int, number: int) -> None:
    """The site is told again what it was told before: a coordinator that lies, or a line that repeats itself."""
    name = _site(world, site)
    held = world.network.answers.get(name, [])
    if held:
        world.network.faults[name].old_answer = held[-1 - number % len(held)]
    world.turn(name)


def instruction_of_another(world: World, site: int, other: int, number: int) -> None:
    held = world.network.answers.get(_site(world, other), [])
    name = _site(world, site)
    if held:
        world.network.faults[name].old_answer = held[-1 - number % len(held)]
    world.turn(name)


# Processes


def coordinator_restarts(world: World) -> None:
    world.kill_coordinator()
    world.start_coordinator()


def coordinator_crashes(world: World, at: int) -> None:
    if world.coordinator is not None:
        world.coordinator.process.dies_in = at


def coordinator_starts(world: World) -> None:
    world.start_coordinator()


def coordinator_is_copied(world: World) -> None:
    world.copy_coordinator()


def coordinator_is_set_back(world: World) -> None:
    world.set_back_coordinator()


def site_restarts(world: World, site: int) -> None:
    name = _site(world, site)
    world.kill_site(name)
    world.start_site(name)


def site_crashes(world: World, site: int, at: int) -> None:
    found = world.sites.get(_site(world, site))
    if found is not None:
        found.process.dies_in = at


def site_starts(world: World, site: int) -> None:
    world.start_site(_site(world, site))


def disk_full(world: World, party: int) -> None:
    """Number 0 is the coordinator's; a second time it has room again."""
    number = party % (world.scenario.n_sites + 1)
    name = "coordinator" if number == 0 else world.scenario.names[number - 1]
    is_full = name not in world.full_disks
    (world.full_disks.add if is_full else world.full_disks.discard)(name)
    world.evidence.was_disk_full |= is_full
    alive = (world.coordinator, world.second) if number == 0 else (world.sites.get(name),)
    for found in alive:
        if found is not None:
            found.process.is_disk_full = is_full


# People


def suspend_site(world: World, site: int) -> None:
    world.change_site(_site(world, site), SiteChange.SUSPEND)


def resume_site(world: World, site: int) -> None:
    world.change_site(_site(world, site), SiteChange.RESUME)


def revoke_site(world: World, site: int) -> None:
    world.change_site(_site(world, site), SiteChange.REVOKE)


def pause_run(world: World) -> None:
    world.change_run(RunChange.PAUSE)


def resume_run(world: World) -> None:
    world.change_run(RunChange.RESUME)


def cancel_run(world: World) -> None:
    world.change_run(RunChange.CANCEL)


def steward_withdraws(world: World, site: int) -> None:
    world.as_site(_site(world, site), lambda found: found.withdraw())
    world.as_site(_site(world, site), lambda found: found.tell_statements())
    world.as_site(_site(world, site), lambda found: found.agent.look_for_withdrawals())


def steward_pauses(world: World, site: int) -> None:
    world.as_site(_site(world, site), lambda found: found.pause(is_on=True))


def steward_resumes(world: World, site: int) -> None:
    world.as_site(_site(world, site), lambda found: found.pause(is_on=False))


def audit_window_passes(world: World) -> None:
    world.pass_audit_window()


OPERATIONS: Mapping[str, Callable[..., None]] = {
    "AdvanceTime": advance_time,
    "LeaseExpires": lease_expires,
    "DriverStep": driver_step,
    "SecondDriverSteps": second_driver_steps,
    "SecondDriverDies": second_driver_dies,
    "SiteSteps": site_steps,
    "SiteTrains": site_trains,
    "TrainerDies": trainer_dies,
    "LifeGoesOn": life_goes_on,
    "LiveUntil": live_until,
    "Quiesce": quiesce,
    "RequestLost": request_lost,
    "ResponseLost": response_lost,
    "UploadBroken": upload_broken,
    "UploadStalls": upload_stalls,
    "StalledUploadGoesOn": stalled_upload_goes_on,
    "UploadResponseLost": upload_response_lost,
    "ReplayUpload": replay_upload,
    "ReplayMessage": replay_message,
    "ReplayAsAnother": replay_as_another,
    "OldInstruction": old_instruction,
    "InstructionOfAnother": instruction_of_another,
    "CoordinatorRestarts": coordinator_restarts,
    "CoordinatorCrashes": coordinator_crashes,
    "CoordinatorStarts": coordinator_starts,
    "CoordinatorIsCopied": coordinator_is_copied,
    "CoordinatorIsSetBack": coordinator_is_set_back,
    "SiteRestarts": site_restarts,
    "SiteCrashes": site_crashes,
    "SiteStarts": site_starts,
    "DiskFull": disk_full,
    "SuspendSite": suspend_site,
    "ResumeSite": resume_site,
    "RevokeSite": revoke_site,
    "PauseRun": pause_run,
    "ResumeRun": resume_run,
    "CancelRun": cancel_run,
    "StewardWithdraws": steward_withdraws,
    "StewardPauses": steward_pauses,
    "StewardResumes": steward_resumes,
    "AuditWindowPasses": audit_window_passes,
}


def perform(world: World, operation: Operation) -> None:
    """Do it, then judge. Raises BrokenInvariantError."""
    name, *arguments = operation
    OPERATIONS[name](world, *arguments)
    check_now(world)


def play(world: World, operations: Sequence[Operation], *, count: Callable[[str], None] = lambda _: None) -> None:
    """Perform all of them and judge the end, mended and at rest where it is played out. Raises BrokenInvariantError."""
    for operation in operations:
        perform(world, operation)
        count(operation[0])
    if not world.scenario.is_played_out:
        check_rest(world)
        return
    world.heal()
    world.rest(for_s=3600.0)
    check_end(world)


# Drawing

_SITES = st.integers(0, 5)


def _drawn(name: str, *arguments: st.SearchStrategy[int]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(name), *arguments)


_LIFE = (
    _drawn("SiteSteps", _SITES),
    _drawn("SiteSteps", _SITES),
    _drawn("DriverStep"),
    _drawn("DriverStep"),
    _drawn("SiteTrains", _SITES),
    _drawn("SiteTrains", _SITES),
    _drawn("SiteSteps", _SITES),
    _drawn("LifeGoesOn"),
    _drawn("LifeGoesOn"),
    _drawn("LiveUntil", st.integers(0, 7)),
)
_TROUBLE = (
    _drawn("AdvanceTime", st.sampled_from([1, 10, 45, 130, 700, 1300])),
    _drawn("LeaseExpires"),
    _drawn("SecondDriverSteps"),
    _drawn("SecondDriverDies"),
    _drawn("TrainerDies", _SITES),
    _drawn("RequestLost", _SITES),
    _drawn("ResponseLost", _SITES),
    _drawn("UploadBroken", _SITES, st.integers(0, 5)),
    _drawn("UploadStalls", _SITES, st.integers(0, 5)),
    _drawn("StalledUploadGoesOn", _SITES),
    _drawn("UploadResponseLost", _SITES),
    _drawn("ReplayUpload", st.integers(0, 30)),
    _drawn("ReplayMessage", st.integers(0, 60)),
    _drawn("ReplayAsAnother", st.integers(0, 60), _SITES),
    _drawn("OldInstruction", _SITES, st.integers(0, 30)),
    _drawn("InstructionOfAnother", _SITES, _SITES, st.integers(0, 10)),
    _drawn("CoordinatorRestarts"),
    _drawn("CoordinatorCrashes", st.integers(1, 25)),
    _drawn("CoordinatorStarts"),
    _drawn("SiteRestarts", _SITES),
    _drawn("SiteCrashes", _SITES, st.integers(1, 25)),
    _drawn("SiteStarts", _SITES),
    _drawn("DiskFull", st.integers(0, 6)),
    _drawn("SuspendSite", _SITES),
    _drawn("ResumeSite", _SITES),
    _drawn("PauseRun"),
    _drawn("ResumeRun"),
    _drawn("StewardPauses", _SITES),
    _drawn("StewardResumes", _SITES),
)
_RARE = (
    _drawn("RevokeSite", _SITES),
    _drawn("StewardWithdraws", _SITES),
    _drawn("CancelRun"),
    _drawn("AuditWindowPasses"),
    _drawn("CoordinatorIsCopied"),
    _drawn("CoordinatorIsSetBack"),
    _drawn("Quiesce"),
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    n_sites = draw(st.sampled_from([4, 5, 6]))
    return Scenario(
        n_sites=n_sites,
        rounds=draw(st.sampled_from([1, 1, 2])),
        enough=draw(st.sampled_from([None, None, n_sites - 1])),
        poll_wait_s=draw(st.sampled_from([0.0, 0.0, 20.0])),
        is_played_out=draw(st.sampled_from([True, False, False])),
    )


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.integers(0, 99))
    choices = _LIFE if kind < 55 else _TROUBLE if kind < 97 else _RARE
    return draw(choices[draw(st.integers(0, len(choices) - 1))])


def lists(length: int) -> st.SearchStrategy[list[Operation]]:
    return st.lists(operations(), min_size=length, max_size=length)


def to_text(scenario: Scenario, performed: Sequence[Operation], *, why: str = "") -> str:
    """A list as it is kept in ``reproductions/``: why it is there, then one operation a line."""
    head = asdict(scenario)
    lines = ",\n    ".join(json.dumps(list(operation)) for operation in performed)
    return (
        f'{{\n  "why": {json.dumps(why)},\n  "scenario": {json.dumps(head)},\n  "operations": [\n    {lines}\n  ]\n}}\n'
    )


def from_text(text: str) -> tuple[Scenario, list[Operation]]:
    document = json.loads(text)
    return Scenario(**document["scenario"]), [tuple(operation) for operation in document["operations"]]
