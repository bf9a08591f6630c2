"""The studies that are there: every folder of ``examples/`` that holds a description, found by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wardround.client.run_upload import read_spec_file
from wardround.documents import section_of
from wardround.errors import StudyDataMissingError, StudyInvalidError, StudyUnknownError, UsageInvalidError
from wardround.studies.description import StudyDescription, read_description

STUDY_FILE = "study.yaml"
RUN_FILE = "run.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study as its folder describes it. Invariant: description, specification and preparation program exist."""

    name: str
    folder: Path
    description: StudyDescription
    run_spec: Mapping[str, object]
    first_run_spec: Mapping[str, object] | None = None

    @property
    def prepare_file(self) -> Path:
        """The program that makes the datasets."""
        return self.folder / self.description.data.prepare.program

    @property
    def task_kind(self) -> str:
        """What is learned."""
        return str(section_of(self.run_spec, "task").get("kind", ""))

    @property
    def base_model_name(self) -> str:
        """Which base model the run starts from."""
        return str(section_of(self.run_spec, "base_model").get("name", ""))

    @property
    def dataset_name(self) -> str:
        """Under which name each site registers its dataset."""
        return str(section_of(self.run_spec, "data").get("dataset", ""))

    @property
    def roster(self) -> tuple[str, ...]:
        """The sites that the run's specification names."""
        sites = section_of(self.run_spec, "cohort").get("sites")
        return tuple(str(site) for site in sites) if isinstance(sites, list) else ()

    @property
    def rounds(self) -> int:
        """How many rounds the run has; 0 where its specification says nothing that can be read."""
        rounds = self.run_spec.get("rounds")
        return rounds if isinstance(rounds, int) and not isinstance(rounds, bool) else 0

    def to_document(self) -> dict[str, object]:
        """As ``--list-studies --json`` tells it."""
        folder = self.description.data.folder
        return {
            "name": self.name,
            "title": self.description.title,
            "seed_system": self.description.seed_system,
            "task": self.task_kind,
            "base_model": self.base_model_name,
            "sites": self.description.sites,
            "rounds": self.rounds,
            "metric": self.description.metric.name,
            "data": self.description.data.source,
            "needs_data": None if folder is None else folder.get,
        }


def find_study(name: str, examples_dir: Path) -> Study:
    """The study of that name, or in the folder of that path.

    Raises:
        StudyUnknownError: there is none; the advice lists what there is.
        StudyInvalidError: its description is wrong, or a program that it names is missing.
        UsageInvalidError: a file of it cannot be read.
    """
    folder = Path(name) if "/" in name else examples_dir / name
    if not all((folder / file).is_file() for file in (STUDY_FILE, RUN_FILE)):
        known = ", ".join(study_names(examples_dir)) or f"none in {examples_dir}"
        raise StudyUnknownError(
            f"there is no study {name!r}",
            advice=f"Studies: {known}. A path of your own works too: a folder with {STUDY_FILE} and {RUN_FILE}.",
        )
    description = read_description(read_spec_file(folder / STUDY_FILE), source=str(folder / STUDY_FILE))
    first = description.first_run
    study = Study(
        name=folder.resolve().name,
        folder=folder.resolve(),
        description=description,
        run_spec=read_spec_file(folder / RUN_FILE),
        first_run_spec=None if first is None else read_spec_file(folder / first.run),
    )
    if not study.prepare_file.is_file():
        fault = ("data.program", f"there is no file {study.prepare_file.name} in the study's folder")
        raise StudyInvalidError(f"{folder / STUDY_FILE} has 1 fault(s)", faults=(fault,))
    return study


def with_run_spec(study: Study, file: Path) -> Study:
    """The study with another specification in place of its ``run.yaml``.

    Raises:
        UsageInvalidError: the file cannot be read.
    """
    return replace(study, run_spec=read_spec_file(file))


def study_names(examples_dir: Path) -> tuple[str, ...]:
    """The names of the studies that are there, ascending."""
    return tuple(sorted(path.parent.name for path in examples_dir.glob(f"*/{STUDY_FILE}")))


def all_studies(examples_dir: Path) -> tuple[Study, ...]:
    """Every study that is there, by name.

    Raises:
        As ``find_study``.
    """
    return tuple(find_study(name, examples_dir) for name in study_names(examples_dir))


def check_data_folder(study: Study, folder: Path | None) -> Path | None:
    """The folder that the study's preparation is given; None where it needs none.

    Raises:
        StudyDataMissingError: the study needs one and got none, or one that lacks what it must hold.
        UsageInvalidError: the study takes none.
    """
    wanted = study.description.data.folder
    if wanted is None:
        if folder is not None:
            raise UsageInvalidError(
                f"the study {study.name} takes no --data",
                advice=f"Its data comes from: {study.description.data.source}.",
            )
        return None
    if folder is None:
        raise StudyDataMissingError(f"the study {study.name} needs --data DIR", advice=wanted.get)
    missing = [name for name in wanted.holds if not (folder / name).exists()]
    if missing or not folder.is_dir():
        what = f"lacks {', '.join(missing)}" if folder.is_dir() else "is no folder"
        raise StudyDataMissingError(f"{folder} is not the data of the study {study.name}: it {what}", advice=wanted.get)
    return folder.absolute()


def prepare_arguments(study: Study, *, n_sites: int, out: Path, data: Path | None) -> tuple[str, ...]:
    """The words after the interpreter that make the datasets of ``n_sites`` sites in ``out``."""
    sites = () if study.description.data.has_named_sites else ("--sites", str(n_sites))
    folder = () if data is None else ("--data", str(data))
    return (str(study.prepare_file), *sites, "--out", str(out), *folder, *study.description.data.prepare.arguments)
