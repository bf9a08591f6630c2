"""Who is trained on, who is chosen by, who is judged by: one rule for every arm, by the hash of the patient. Pure.

The held-out set is the trainer's own (``site_agent.training.data``): all sites' held-out records together judge every
arm. The search is judged by a second split, inside the training records, so that nothing is chosen in sight of what
judges. A person who is at two sites has one hash, so that no arm trains on one whom another site holds out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from benchmarks.studies.errors import SplitUnusableError

_VALIDATION_DOMAIN = "wardround/validation/"


class Person(Protocol):
    """What a split needs of a record: whom it counts as."""

    @property
    def person(self) -> str:
        """The patient, or the record itself where it names none."""
        ...


R = TypeVar("R", bound=Person)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteParts(Generic[R]):
    """One site's records by their use. Invariant: nobody is in training and held_out, or in fitting and validation.

    Attributes:
        name: the site.
        n_records: of the whole dataset: the site's weight in the mean.
        training: what the table's arms train on.
        held_out: what judges them.
        fitting, validation: training, split again for the search.
    """

    name: str
    n_records: int
    training: tuple[R, ...]
    held_out: tuple[R, ...]
    fitting: tuple[R, ...]
    validation: tuple[R, ...]


def parts_of_site(
    name: str,
    *,
    n_records: int,
    training: Sequence[R],
    held_out: Sequence[R],
    validation_fraction: float,
    max_validation: int,
) -> SiteParts[R]:
    """Split a site's training records again.

    Args:
        name: the site.
        n_records: of its dataset.
        training: as the trainer splits them.
        held_out: the same.
        validation_fraction: of the training persons, by the second hash.
        max_validation: how many records of a site the search is judged by, those with the lowest hashes; further ones
            are used for nothing in the search.

    Raises:
        SplitUnusableError: a part has no record, or a person is on both sides.
    """
    fitting = tuple(record for record in training if validation_hash(record.person) >= validation_fraction)
    validation = sorted(
        (record for record in training if validation_hash(record.person) < validation_fraction),
        key=lambda record: (validation_hash(record.person), record.person),
    )
    parts = SiteParts(
        name=name,
        n_records=n_records,
        training=tuple(training),
        held_out=tuple(held_out),
        fitting=fitting,
        validation=tuple(validation[:max_validation]),
    )
    _check(parts)
    return parts


def check_sites(sites: Sequence[SiteParts[R]], *, has_search: bool) -> None:
    """Check across all sites that there is somebody who judges, and that nobody who does is trained on.

    A small site may hold nobody out; it is judged by the others' records like everybody else.

    Raises:
        SplitUnusableError: it is not so.
    """
    if not any(site.held_out for site in sites):
        raise SplitUnusableError("no site has a record that is held out")
    if has_search and not any(site.validation for site in sites):
        raise SplitUnusableError("no site has a record for the search to choose by")
    held_out = {record.person for site in sites for record in site.held_out}
    validation = {record.person for site in sites for record in site.validation}
    if any(record.person in held_out for site in sites for record in site.training):
        raise SplitUnusableError("a person is trained on and held out")
    if any(record.person in validation for site in sites for record in site.fitting):
        raise SplitUnusableError("a person is fitted on and validated by")


def validation_hash(person: str) -> float:
    """Uniform in [0, 1) over persons, and independent of who is held out: another domain of SHA-256."""
    digest = hashlib.sha256((_VALIDATION_DOMAIN + person).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check(parts: SiteParts[R]) -> None:
    for name, records in (("to train on", parts.training), ("to fit on", parts.fitting)):
        if not records:
            raise SplitUnusableError(f"the site {parts.name} has no record {name}", site=parts.name)
