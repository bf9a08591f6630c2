"""The digest of everything that a cell's figures follow from, so that a cell is never taken for another. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import rfc8785

from benchmarks.studies.cells import CellKey
from wardround.studies.description import Arm

ARMS_VERSION = 1
"""Raised when the arms themselves compute other figures; cells of another version are not mixed with these."""

_OF_A_CELL = ("seed", "learning_rate", "steps")


def common_settings(
    *,
    run_spec: Mapping[str, object],
    rounds: int,
    validation_fraction: float,
    data_sha256: Mapping[str, str],
    surroundings: Mapping[str, object],
) -> dict[str, object]:
    """What all cells share.

    Args:
        run_spec: the study's specification with the base model's digest; what a cell says itself is left out.
        rounds: of every arm.
        validation_fraction: of the training records, used by the search.
        data_sha256: each site's dataset.
        surroundings: device, precision and versions of what computes.
    """
    local = run_spec.get("local")
    assert isinstance(local, Mapping), "a parsed specification has this section"
    shared = {key: value for key, value in local.items() if key not in _OF_A_CELL}
    return {
        "arms_version": ARMS_VERSION,
        "run_spec": {**run_spec, "local": shared, "rounds": rounds},
        "validation_fraction": validation_fraction,
        "data_sha256": dict(data_sha256),
        "surroundings": dict(surroundings),
    }


def digest_of(document: Mapping[str, object]) -> str:
    """SHA-256 of the canonical JSON of a document."""
    return hashlib.sha256(rfc8785.dumps(dict(document))).hexdigest()  # type: ignore[arg-type]  # JSON values


def settings_digest(key: CellKey, *, common_sha256: str, is_secure: bool) -> str:
    """The digest of one cell's settings; how the sum is made matters to arms that have one."""
    return digest_of(
        {
            "common_sha256": common_sha256,
            "phase": key.phase.value,
            "arm": key.arm.value,
            "site": key.site,
            "seed": key.seed,
            "learning_rate": key.learning_rate,
            "steps": key.steps,
            "sum": ("secure" if is_secure else "plain") if key.arm in (Arm.FEDERATED, Arm.WITHOUT) else "none",
        }
    )


def differing_paths(one: object, other: object, *, path: str = "") -> list[str]:
    """Where two documents differ, as paths; lists are compared whole."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = sorted({*one, *other})
        return [
            found
            for name in names
            for found in differing_paths(one.get(name), other.get(name), path=f"{path}.{name}" if path else str(name))
        ]
    return [] if one == other else [path or "(document)"]
