"""Filling a table: which cells are missing, each of them computed and written before the next is begun."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.studies.arms import POOLED_SITE, AddUp, ArmResult, train_alone, train_federated
from benchmarks.studies.cells import Cell, CellKey, Phase
from benchmarks.studies.choice import Setting, choose_setting, search_cells, table_cells
from benchmarks.studies.errors import SettingsDifferError
from benchmarks.studies.figures import pooled_value
from benchmarks.studies.progress import NO_WORK, TableProgress, Work
from benchmarks.studies.settings import differing_paths, settings_digest
from benchmarks.studies.splits import SiteParts, check_sites
from benchmarks.studies.table_file import Table, write_table
from benchmarks.studies.workshop import Workshop
from fl_protocol.spec.run_spec import RunSpec, parse_run_spec
from wardround.studies.description import Arm, SearchGrid, ShownMetric

Parts = SiteParts[Any]

_PLAIN_MEAN = {"algorithm": "fedavg-lora", "server": {"optimizer": "fedavg"}}
"""What an arm without a federation has in place of the run's own algorithm: of one site it is the site itself."""

_OF_A_LOCAL_RULE = frozenset({"mu"})
"""Keys of ``local`` that only one rule has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Everything that filling a table needs.

    Attributes:
        path: the table's document.
        run_spec: the study's specification, with the base model's digest and the number of rounds.
        sites: their records by use.
        common_sha256: of ``common``, the settings that all cells share.
        seeds: of the table; the search uses the first.
        arms: to fill, in the order of the table.
        without: the sites that the arm ``without`` leaves out, one at a time.
        add_up: how the federated arm's payloads are added; ``is_secure`` says which it is.
        is_redoing: cells of other settings are dropped.
    """

    path: Path
    run_spec: Mapping[str, object]
    sites: Sequence[Parts]
    common: Mapping[str, object]
    common_sha256: str
    metric: ShownMetric
    grid: SearchGrid | None
    seeds: Sequence[int]
    arms: Sequence[Arm]
    add_up: AddUp
    is_secure: bool
    is_redoing: bool
    machine: Mapping[str, object]
    without: Sequence[str] = ()

    @property
    def searching_arms(self) -> tuple[Arm, ...]:
        """The arms whose search decides: all, where it decides the steps that all share."""
        chooses_steps = self.grid is not None and len(self.grid.steps) > 1
        left_out = {Arm.BEFORE} if self.without else {Arm.BEFORE, Arm.WITHOUT}
        return tuple(arm for arm in (Arm if chooses_steps else self.arms) if arm not in left_out)

    @property
    def site_names(self) -> tuple[str, ...]:
        """All sites, in the run's order."""
        return tuple(site.name for site in self.sites)

    def spec_of(self, key: CellKey) -> RunSpec:
        """The run that a cell trains. Only an arm that is federated keeps what is between the sites: rule and server.

        Raises:
            RunSpecFaultsError: the setting is not admitted.
        """
        local = dict(_section(self.run_spec, "local"))
        local["seed"] = key.seed
        if key.arm is not Arm.BEFORE:
            local |= {"learning_rate": key.learning_rate, "steps": key.steps}
        if key.arm in (Arm.BEFORE, Arm.FEDERATED, Arm.WITHOUT):
            return parse_run_spec({**self.run_spec, "local": local})
        plain = {name: value for name, value in local.items() if name not in _OF_A_LOCAL_RULE}
        return parse_run_spec({**self.run_spec, "aggregation": _PLAIN_MEAN, "local": {**plain, "rule": "plain"}})


def fill_table(filling: Filling, table: Table, workshop: Workshop, shown: TableProgress) -> int:
    """Search, choose, and fill what is missing; returns how many cells were computed.

    Raises:
        SettingsDifferError: the table has cells of other settings, and they are not to be done again.
        SplitUnusableError: somebody is trained on and judges.
    """
    check_sites(filling.sites, has_search=filling.grid is not None)
    _refuse_or_drop(filling, table, shown)
    table.common[filling.common_sha256] = filling.common
    if filling.machine not in table.machines:
        table.machines.append(filling.machine)
    own = _own_setting(filling)
    searched: tuple[CellKey, ...] = ()
    if filling.grid is not None:
        searched = search_cells(
            filling.grid,
            arms=filling.searching_arms,
            sites=filling.site_names,
            seed=filling.seeds[0],
            without=filling.without,
        )
    # What the search will choose is not known yet: the time left is estimated as if it were the run's own setting.
    later = _missing(filling, table, _table_keys(filling, own))
    missing = _missing(filling, table, searched)
    shown.begin(_work_of(filling, (*missing, *later)), records_a_step=_records_a_step(filling))
    n_done = _compute(filling, table, workshop, shown, missing)
    setting = own if filling.grid is None else _chosen(filling, table, searched)
    table.chosen = None if filling.grid is None else _chosen_document(filling, table, setting)
    missing = _missing(filling, table, _table_keys(filling, setting))
    _refuse_other_settings(filling, table, missing)
    shown.begin(_work_of(filling, missing), records_a_step=_records_a_step(filling))
    n_done += _compute(filling, table, workshop, shown, missing)
    write_table(filling.path, table)
    return n_done


def _compute(
    filling: Filling, table: Table, workshop: Workshop, shown: TableProgress, missing: Sequence[CellKey]
) -> int:
    for number, key in enumerate(missing, start=1):
        shown.cell(f"[{number}/{len(missing)}] {key.sentence()}")
        table.put(_compute_cell(filling, key, workshop))
        write_table(filling.path, table)
    return len(missing)


def _compute_cell(filling: Filling, key: CellKey, workshop: Workshop) -> Cell:
    began = time.monotonic()
    spec = filling.spec_of(key)
    is_search = key.phase is Phase.SEARCH
    result = _train(filling, key, spec, workshop)
    return Cell(
        key=key,
        settings_sha256=_digest(filling, key),
        common_sha256=filling.common_sha256,
        optimiser_steps=result.optimiser_steps,
        sites={
            site.name: workshop.evaluate(
                spec,
                result.state.adapter,
                site.validation if is_search else site.held_out,
                training=site.fitting if is_search else site.training,
            )
            for site in filling.sites
        },
        update_norms=result.update_norms,
        seconds=time.monotonic() - began,
    )


def _train(filling: Filling, key: CellKey, spec: RunSpec, workshop: Workshop) -> ArmResult:
    is_search = key.phase is Phase.SEARCH

    def records_of(site: Parts) -> Sequence[Any]:
        return site.fitting if is_search else site.training

    match key.arm:
        case Arm.BEFORE:
            return ArmResult(state=workshop.initial_state(spec), optimiser_steps=0, update_norms=())
        case Arm.FEDERATED:
            return train_federated(workshop, spec, filling.sites, records_of=records_of, add_up=filling.add_up)
        case Arm.WITHOUT:
            others = [site for site in filling.sites if site.name != key.site]
            return train_federated(workshop, spec, others, records_of=records_of, add_up=filling.add_up)
        case Arm.POOLED:
            together = [record for site in filling.sites for record in records_of(site)]
            return train_alone(workshop, spec, site=POOLED_SITE, records=together)
        case Arm.LOCAL:
            site = next(site for site in filling.sites if site.name == key.site)
            return train_alone(workshop, spec, site=site.name, records=records_of(site))


def _chosen(filling: Filling, table: Table, searched: Sequence[CellKey]) -> Setting:
    assert filling.grid is not None, "only a search chooses"
    return choose_setting(
        [table.cells[key.place] for key in searched],
        value_of=lambda cell: pooled_value(filling.metric.name, cell),
        better=filling.metric.better,
        grid=filling.grid,
        arms=filling.searching_arms,
    )


def _chosen_document(filling: Filling, table: Table, setting: Setting) -> Mapping[str, object] | None:
    """What was chosen, beside what an earlier call chose for arms that this one leaves out."""
    if not setting.learning_rates:
        return table.chosen
    document = setting.to_document(rounds=_rounds(filling))
    before = table.chosen or {}
    if before.get("steps") != setting.steps:
        return document
    return {
        **document,
        "learning_rates": {**_section(before, "learning_rates"), **_section(document, "learning_rates")},
    }


def _own_setting(filling: Filling) -> Setting:
    """The rate and the steps of the study's own specification."""
    spec = parse_run_spec(filling.run_spec)
    return Setting(steps=spec.local.steps, learning_rates=dict.fromkeys(Arm, spec.local.learning_rate))


def _table_keys(filling: Filling, setting: Setting) -> tuple[CellKey, ...]:
    return table_cells(
        setting, arms=filling.arms, sites=filling.site_names, seeds=filling.seeds, without=filling.without
    )


def _missing(filling: Filling, table: Table, keys: Sequence[CellKey]) -> tuple[CellKey, ...]:
    return tuple(
        key
        for key in keys
        if key.place not in table.cells or table.cells[key.place].settings_sha256 != _digest(filling, key)
    )


def _digest(filling: Filling, key: CellKey) -> str:
    return settings_digest(key, common_sha256=filling.common_sha256, is_secure=filling.is_secure)


def _refuse_or_drop(filling: Filling, table: Table, shown: TableProgress) -> None:
    """Cells of other common settings are refused, or dropped where they are to be done again."""
    others = [cell for cell in table.cells.values() if cell.common_sha256 != filling.common_sha256]
    if not others:
        return
    if filling.is_redoing:
        shown.say(f"{table.keep_only(filling.common_sha256)} cells of other settings are dropped")
        return
    before = table.common.get(others[0].common_sha256, {})
    raise _differ(len(others), differing_paths(before, filling.common))


def _refuse_other_settings(filling: Filling, table: Table, missing: Sequence[CellKey]) -> None:
    """A cell that is there with another rate, number of steps or kind of sum is not overwritten unasked."""
    stale = [key for key in missing if key.place in table.cells]
    if stale and not filling.is_redoing:
        what = ["learning_rate, steps or sum of " + ", ".join(sorted({key.arm.value for key in stale}))]
        raise _differ(len(stale), what)


def _differ(n_cells: int, paths: Sequence[str]) -> SettingsDifferError:
    shown = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
    return SettingsDifferError(
        f"{n_cells} cells of the table were filled with other settings; what differs: {shown or 'unknown'}",
        advice="Use --redo to drop and fill them again, or --table FILE to fill another table.",
        n_cells=n_cells,
    )


def _work_of(filling: Filling, keys: Sequence[CellKey]) -> Work:
    total = NO_WORK
    for key in keys:
        n_paths = len(filling.sites) if key.arm in (Arm.FEDERATED, Arm.WITHOUT) else 1
        is_search = key.phase is Phase.SEARCH
        records = sum(len(site.validation if is_search else site.held_out) for site in filling.sites)
        total += Work(steps=key.steps * _rounds(filling) * n_paths, records=records)
    return total


def _records_a_step(filling: Filling) -> int:
    local = parse_run_spec(filling.run_spec).local
    return local.batch_size * local.accumulation


def _rounds(filling: Filling) -> int:
    rounds = filling.run_spec["rounds"]
    assert isinstance(rounds, int), "a parsed specification has rounds"
    return rounds


def _section(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    section = document[key]
    assert isinstance(section, Mapping), "a parsed specification has this section"
    return section
