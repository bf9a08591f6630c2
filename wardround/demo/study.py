"""A study: a folder with a run specification and a program that makes each site's dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.client.run_upload import read_spec_file
from wardround.errors import NotFoundError, UsageInvalidError

RUN_FILE = "run.yaml"
PREPARE_FILE = "prepare.py"
MIN_SITES = 3

SITE_NAMES = (
    "st-mary",
    "charite",
    "ucsf",
    "karolinska",
    "rigshospitalet",
    "aiims",
    "groote-schuur",
    "santa-casa",
    "royal-melbourne",
    "clinic-barcelona",
    "hotel-dieu",
    "bergmannstrost",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study as its folder describes it. Invariant: both files exist."""

    name: str
    folder: Path
    run_spec: Mapping[str, object]

    @property
    def prepare_file(self) -> Path:
        """The program that makes the datasets."""
        return self.folder / PREPARE_FILE

    @property
    def base_model_name(self) -> str:
        """Which base model the run starts from."""
        return str(section_of(self.run_spec, "base_model").get("name", ""))

    @property
    def dataset_name(self) -> str:
        """Under which name each site registers its dataset."""
        return str(section_of(self.run_spec, "data").get("dataset", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChoices:
    """What the user of the demonstration chose over the study's own specification."""

    sites: tuple[str, ...]
    rounds: int | None = None
    seed: int | None = None


def load_study(name: str, examples_dir: Path) -> Study:
    """The study of that name, or in the folder of that path.

    Raises:
        NotFoundError: there is none; the message lists what there is.
    """
    folder = Path(name) if "/" in name else examples_dir / name
    if not all((folder / file).is_file() for file in (RUN_FILE, PREPARE_FILE)):
        known = ", ".join(studies_in(examples_dir)) or f"none in {examples_dir}"
        raise NotFoundError(f"there is no study {name!r}", advice=f"Studies: {known}. A path of your own works too.")
    return Study(name=folder.resolve().name, folder=folder.resolve(), run_spec=read_spec_file(folder / RUN_FILE))


def studies_in(examples_dir: Path) -> tuple[str, ...]:
    """The names of the studies that are there."""
    return tuple(sorted(path.parent.name for path in examples_dir.glob(f"*/{RUN_FILE}")))


def site_names(n_sites: int) -> tuple[str, ...]:
    """Names for that many sites.

    Raises:
        UsageInvalidError: a secure sum among so few would hide nothing.
    """
    if n_sites < MIN_SITES:
        raise UsageInvalidError(
            f"a federation has at least {MIN_SITES} sites", advice="The sum of two gives each away to the other."
        )
    return tuple(SITE_NAMES[:n_sites]) + tuple(
        f"hospital-{number}" for number in range(len(SITE_NAMES) + 1, n_sites + 1)
    )


def spec_for_demo(study: Study, choices: RunChoices) -> dict[str, object]:
    """The study's specification for these sites: roster, quorum of all, and what the user chose."""
    spec: dict[str, object] = dict(study.run_spec)
    spec["cohort"] = {
        **section_of(spec, "cohort"),
        "sites": list(choices.sites),
        "quorum": len(choices.sites),
    }
    if choices.rounds is not None:
        spec["rounds"] = choices.rounds
    if choices.seed is not None:
        spec["local"] = {**section_of(spec, "local"), "seed": choices.seed}
    return spec


def section_of(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The mapping under ``key``; an empty one where there is none, of which the reader of specifications complains."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
