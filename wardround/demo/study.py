"""A study's run as the demonstration runs it: which sites, how many rounds, from which seed."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.documents import section_of
from wardround.errors import UsageInvalidError
from wardround.studies.catalogue import Study
from wardround.studies.description import MIN_SITES

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
class RunChoices:
    """What the user of the demonstration chose over the study's own specification."""

    sites: tuple[str, ...]
    rounds: int | None = None
    seed: int | None = None


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
