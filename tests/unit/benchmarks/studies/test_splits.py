from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pytest

from benchmarks.studies.errors import SplitUnusableError
from benchmarks.studies.splits import SiteParts, check_sites, parts_of_site, validation_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    person: str
    number: int = 0


def records(names: range, *, prefix: str = "p") -> list[Record]:
    return [Record(person=f"{prefix}{name}", number=name) for name in names]


def parts(training: list[Record], held_out: list[Record], **changes: object) -> SiteParts[Record]:
    options = {"n_records": 99, "validation_fraction": 0.25, "max_validation": 1000, **changes}
    return parts_of_site("a", training=training, held_out=held_out, **options)  # type: ignore[arg-type]


def test_validation_hash_is_sha256_in_a_domain_of_its_own() -> None:
    digest = hashlib.sha256(b"wardround/validation/p1").hexdigest()
    assert validation_hash("p1") == int(digest[:16], 16) / 2**64


def test_validation_is_taken_from_training_by_person_and_shares_nobody_with_the_rest() -> None:
    training = records(range(400)) + records(range(400))  # two records a person
    site = parts(training, records(range(400, 440)))
    fitting, validation = ({record.person for record in part} for part in (site.fitting, site.validation))
    assert fitting | validation == {record.person for record in training}
    assert not fitting & validation
    assert len(site.fitting) + len(site.validation) == 800
    assert 0.15 < len(validation) / 400 < 0.35
    assert site.training == tuple(training)


def test_validation_is_independent_of_who_is_held_out() -> None:
    held_out = [name for name in range(20_000) if hashlib.sha256(f"wardround/split/p{name}".encode()).digest()[0] < 26]
    part = sum(validation_hash(f"p{name}") < 0.25 for name in held_out) / len(held_out)
    assert 0.22 < part < 0.28


def test_validation_is_capped_and_what_is_beyond_is_used_for_nothing() -> None:
    site = parts(records(range(400)), records(range(400, 440)), max_validation=5)
    assert len(site.validation) == 5
    assert all(validation_hash(record.person) >= 0.25 for record in site.fitting)
    lowest = sorted(validation_hash(f"p{name}") for name in range(400))[:5]
    assert [validation_hash(record.person) for record in site.validation] == lowest


def test_without_a_search_everything_is_fitted_on() -> None:
    site = parts(records(range(9)), records(range(9, 12)), validation_fraction=0.0)
    assert (site.fitting, site.validation) == (site.training, ())


def test_site_without_a_record_to_train_on_is_refused() -> None:
    with pytest.raises(SplitUnusableError) as caught:
        parts([], records(range(2)))
    assert caught.value.code == "study-split-unusable"


def test_one_site_may_hold_nobody_out_but_not_all() -> None:
    without, other = parts(records(range(40)), []), parts(records(range(40)), records(range(40, 50)))
    check_sites([without, other], has_search=True)
    with pytest.raises(SplitUnusableError, match="held out"):
        check_sites([without], has_search=False)


def test_search_needs_somebody_to_choose_by() -> None:
    site = parts(records(range(9)), records(range(9, 12)), validation_fraction=0.0)
    check_sites([site], has_search=False)
    with pytest.raises(SplitUnusableError, match="choose"):
        check_sites([site], has_search=True)


def test_person_who_is_trained_on_at_another_site_than_held_out_is_found() -> None:
    first = parts(records(range(40)), records(range(40, 50)))
    check_sites([first], has_search=True)
    second = parts(records(range(45, 90)), records(range(90, 99)))
    with pytest.raises(SplitUnusableError, match="held out"):
        check_sites([first, second], has_search=True)
