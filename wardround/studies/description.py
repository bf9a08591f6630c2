"""``study.yaml``: what a study needs and how it is measured, next to ``run.yaml``, which says what is trained.

A description is data: it names programs of its own folder and of ``deploy/scripts``, and no code. What the run's
specification says already (task, adapter, rounds, rates) does not stand here again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fl_protocol.spec.faults import Fault, Reader
from wardround.errors import StudyInvalidError

PREPARE_FILE = "prepare.py"
MIN_SITES = 3
MAX_SITES = 200

_LONGEST = 400
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBER = "{number}"
_SITE = "{site}"

PLACES = ("{data}", "{first_release}", "{first_base}")
"""The prepared datasets; the release of the first run; the base model of the first run."""


class Better(StrEnum):
    """Which way a metric is to go."""

    LOWER = "lower"
    HIGHER = "higher"


class Arm(StrEnum):
    """How an adapter of the study's table came to be."""

    BEFORE = "before"
    FEDERATED = "federated"
    POOLED = "pooled"
    LOCAL = "local"
    WITHOUT = "without"
    """As federated, among all sites but one: what that one brings the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCall:
    """A program and the words that it is called with.

    Attributes:
        program: a file of the study's folder or of ``deploy/scripts``; for a base model also a verb of the trainer.
        arguments: may hold the places ``{data}``, ``{first_release}`` and ``{first_base}``, where they are known.
    """

    program: str
    arguments: tuple[str, ...] = ()

    @property
    def is_verb(self) -> bool:
        """Whether it is a verb of the trainer, as ``python -m site_agent.training VERB``."""
        return not self.program.endswith(".py")

    @property
    def has_places(self) -> bool:
        """Whether what it makes depends on the data or on an earlier run, so that it is made anew each time."""
        return any(place in word for word in self.arguments for place in PLACES)

    def arguments_in(self, places: Mapping[str, str]) -> tuple[str, ...]:
        """The words with every known place filled in."""
        words = self.arguments
        for place, path in places.items():
            words = tuple(word.replace(place, path) for word in words)
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFolder:
    """A folder that the user brings, with ``--data``.

    Attributes:
        get: where from, as a sentence.
        holds: names that must be in it.
    """

    get: str
    holds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyData:
    """How the sites' datasets are made.

    Attributes:
        source: what they are made of, for people.
        prepare: called with ``--sites N --out DIR``, and ``--data DIR`` where ``folder`` is given.
        file: the name of a site's dataset in DIR: with ``{number}`` in it, from 1, or with ``{site}``: then the sites
            are those of the run's roster, because the data are theirs, and ``--sites`` is not passed on.
        data_format: as which format a site registers it.
        folder: what the user must bring; None where a package has everything.
    """

    source: str
    prepare: ProgramCall
    file: str
    data_format: str
    folder: DataFolder | None

    @property
    def has_named_sites(self) -> bool:
        """Whether the datasets belong to the sites of the run's roster."""
        return _SITE in self.file

    def file_of(self, number: int, site: str) -> str:
        """The name of one site's dataset; ``number`` from 1."""
        return self.file.replace(_NUMBER, str(number)).replace(_SITE, site)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownMetric:
    """The one figure that the study is judged by."""

    name: str
    unit: str
    better: Better

    def is_better(self, value: float, than: float) -> bool:
        """Whether the first figure is the better one."""
        return value < than if self.better is Better.LOWER else value > than


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchGrid:
    """What is tried on the validation split before the table is filled.

    Attributes:
        learning_rates, steps: every pair is tried, by every arm that trains; ``steps`` are those of one round.
        validation_fraction: of the training records, by a second hash of the patient.
    """

    learning_rates: tuple[float, ...]
    steps: tuple[int, ...]
    validation_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan:
    """How the study's table is filled. Every arm trains for ``rounds`` times the chosen number of steps.

    Attributes:
        rounds: of the federated arm; None: as the run's specification says.
        without: the numbers of the sites, from 1, that the arm ``without`` leaves out, one at a time. Invariant: the
            arm is among the arms exactly where there is one.
        search: None where nothing is searched: the run's own rate and steps are used.
        command: of ``python -m benchmarks``, where the table is filled by another than ``studies``.
    """

    seeds: int
    rounds: int | None
    arms: tuple[Arm, ...]
    search: SearchGrid | None
    command: str | None
    without: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """A run that comes before the study's own, among the same sites: what it releases goes into the base model.

    Attributes:
        run: the file of its specification, beside the description.
        base_model: how its own base model is made.
    """

    run: str
    base_model: ProgramCall | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDescription:
    """A whole ``study.yaml``. Invariant: only ``read_description`` makes one, so every bound of it holds."""

    title: str
    seed_system: str
    data: StudyData
    first_run: FirstRun | None
    base_model: ProgramCall | None
    sites: int
    metric: ShownMetric
    table: TablePlan


def read_description(document: Mapping[str, object], *, source: str) -> StudyDescription:
    """Read a description from what a YAML parser returned.

    Args:
        document: the mapping.
        source: what to call it in the error.

    Raises:
        StudyInvalidError: with every fault, each with its path.
    """
    faults: list[Fault] = []
    top = Reader(document, path="", faults=faults)
    description = StudyDescription(
        title=top.text("title", longest=_LONGEST),
        seed_system=top.text("seed_system", longest=_LONGEST),
        data=_read_data(top.section("data")),
        first_run=_read_first_run(top.section("first_run")) if top.has("first_run") else None,
        base_model=_read_builder(top),
        sites=top.integer("sites", low=MIN_SITES, high=MAX_SITES),
        metric=_read_metric(top.section("metric")),
        table=_read_table(top.section("table")),
    )
    top.skip("first_run")
    if any(number > description.sites for number in description.table.without):
        top.fault("table.without", f"numbers sites from 1 to {description.sites}")
    top.finish()
    if faults:
        listed = tuple((fault.path, fault.message) for fault in faults)
        raise StudyInvalidError(f"{source} has {len(faults)} fault(s)", faults=listed)
    return description


def _read_data(reader: Reader) -> StudyData:
    source = reader.text("source", longest=_LONGEST)
    prepare = ProgramCall(
        program=_file_name(reader, "program", default=PREPARE_FILE), arguments=_texts(reader, "arguments")
    )
    file = reader.text("file", longest=100) if reader.has("file") else f"site-{_NUMBER}.jsonl"
    plain = file.replace(_NUMBER, "1").replace(_SITE, "a")
    if file.count(_NUMBER) + file.count(_SITE) != 1 or _FILE_NAME.fullmatch(plain) is None:
        reader.fault("file", f"must be a file's name with {_NUMBER} or {_SITE} in it once")
    reader.skip("file")
    data_format = reader.label("format") if reader.has("format") else "jsonl"
    reader.skip("format")
    folder = _read_folder(reader.section("folder")) if reader.has("folder") else None
    reader.skip("folder")
    reader.finish()
    return StudyData(source=source, prepare=prepare, file=file, data_format=data_format, folder=folder)


def _read_folder(reader: Reader) -> DataFolder:
    folder = DataFolder(get=reader.text("get", longest=_LONGEST), holds=_texts(reader, "holds"))
    reader.finish()
    return folder


def _read_builder(top: Reader) -> ProgramCall | None:
    if not top.has("base_model"):
        top.skip("base_model")
        return None
    reader = top.section("base_model")
    call = ProgramCall(program=_file_name(reader, "builder"), arguments=_texts(reader, "arguments"))
    reader.finish()
    return call


def _read_first_run(reader: Reader) -> FirstRun:
    first = FirstRun(run=_file_name(reader, "run"), base_model=_read_builder(reader))
    reader.finish()
    return first


def _read_metric(reader: Reader) -> ShownMetric:
    metric = ShownMetric(
        name=reader.label("name"), unit=reader.text("unit", longest=40), better=reader.choice("better", Better)
    )
    reader.finish()
    return metric


def _read_table(reader: Reader) -> TablePlan:
    without = tuple(int(number) for number in _numbers(reader, "without", kind=int)) if reader.has("without") else ()
    plan = TablePlan(
        seeds=reader.integer("seeds", low=1, high=100, default=3),
        rounds=reader.integer("rounds", low=1, high=10_000) if reader.has("rounds") else None,
        arms=_arms(reader, has_without=bool(without)),
        search=_read_search(reader.section("search")) if reader.has("search") else None,
        command=reader.label("command") if reader.has("command") else None,
        without=without,
    )
    for key in ("rounds", "search", "command", "without"):
        reader.skip(key)
    reader.finish()
    return plan


def _read_search(reader: Reader) -> SearchGrid:
    grid = SearchGrid(
        learning_rates=tuple(float(rate) for rate in _numbers(reader, "learning_rates")),
        steps=tuple(int(steps) for steps in _numbers(reader, "steps", kind=int)),
        validation_fraction=reader.number("validation_fraction", above=0.0, high=0.5, default=0.1),
    )
    reader.finish()
    return grid


def _arms(reader: Reader, *, has_without: bool) -> tuple[Arm, ...]:
    names = _texts(reader, "arms") or tuple(arm.value for arm in Arm if has_without or arm is not Arm.WITHOUT)
    for name in names:
        if name not in set(Arm):
            reader.fault("arms", f"{name[:80]!r} is no arm (there are: {', '.join(Arm)})")
    if (Arm.WITHOUT.value in names) is not has_without:
        reader.fault("without", "names the sites that the arm 'without' leaves out: one is nothing without the other")
    return tuple(Arm(name) for name in dict.fromkeys(names) if name in set(Arm))


def _numbers(reader: Reader, key: str, *, kind: type[int | float] = float) -> list[int | float]:
    """The different positive numbers in a list, in its order."""
    numbers: list[int | float] = []
    for value in reader.items(key):
        is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not is_number or not isinstance(value, int | float) or not 0 < value < 1e9:
            what = "whole numbers" if kind is int else "numbers"
            reader.fault(key, f"must be {what} greater than 0")
            return []
        numbers.append(value)
    return list(dict.fromkeys(numbers))


def _texts(reader: Reader, key: str) -> tuple[str, ...]:
    if not reader.has(key):
        reader.skip(key)
        return ()
    values = reader.items(key)
    if all(isinstance(value, str) and value.strip() for value in values):
        return tuple(str(value) for value in values)
    reader.fault(key, "must be a list of texts")
    return ()


def _file_name(reader: Reader, key: str, *, default: str = "") -> str:
    """The name of a file beside the description: it leads nowhere else."""
    if default and not reader.has(key):
        reader.skip(key)
        return default
    name = reader.text(key, longest=100)
    if name != "-" and _FILE_NAME.fullmatch(name) is None:
        reader.fault(key, "must be the name of a file, not a path")
    return name
