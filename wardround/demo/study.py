"""A study's run as the demonstration runs it: which sites, how many rounds, from which seed."""

from __future__ import annotations

from collections.abc import Mapping
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


def sites_of_study(study: Study, n_sites: int | None) -> tuple[str, ...]:
    """The names of the sites of a demonstration.

    Args:
        study: whose data either belong to the sites of its roster, or are shared out among hospitals.
        n_sites: how many; None: as the study says.

    Raises:
        UsageInvalidError: too few, or more than the study's data have.
    """
    wanted = study.description.sites if n_sites is None else n_sites
    if not study.description.data.has_named_sites:
        return site_names(wanted)
    if not MIN_SITES <= wanted <= len(study.roster):
        raise UsageInvalidError(
            f"the study {study.name} has {len(study.roster)} sites",
            advice=f"Choose {MIN_SITES} to {len(study.roster)} of them with --sites.",
        )
    return study.roster[:wanted]


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


def spec_for_demo(run_spec: Mapping[str, object], choices: RunChoices) -> dict[str, object]:
    """A specification of the study for these sites: roster, quorum of all, and what the user chose."""
    spec: dict[str, object] = dict(run_spec)
    spec["cohort"] = {
        **section_of(spec, "cohort"),
        "sites": list(choices.sites),
        "quorum": len(choices.sites),
    }
    if choices.rounds is not None:
        spec["rounds"] = choices.rounds
        evaluation = section_of(spec, "evaluation")
        if isinstance(every := evaluation.get("every"), int) and every > choices.rounds:
            # Fewer rounds than the study lets pass between two evaluations: then before the first and after the last.
            spec["evaluation"] = {**evaluation, "every": choices.rounds}
    if choices.seed is not None:
        spec["local"] = {**section_of(spec, "local"), "seed": choices.seed}
    return spec
