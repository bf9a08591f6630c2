"""RunSpecs as they lie in the database: read from their exact bytes, each once."""

from __future__ import annotations

from functools import lru_cache

from fl_protocol.spec.run_spec import RunSpec, run_spec_from_bytes


@lru_cache(maxsize=256)
def run_spec_of(canonical_bytes: bytes) -> RunSpec:
    """The RunSpec in these bytes. A RunSpec is frozen, and so may be shared."""
    return run_spec_from_bytes(canonical_bytes)
