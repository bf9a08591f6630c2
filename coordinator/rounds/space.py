"""How much room a round needs in the blob store, before it opens. Pure."""

from __future__ import annotations

from dataclasses import dataclass

MARGIN_BYTES = 64 << 20
"""Left free beside what is asked for: others write to the same disk."""

WAITS_FOR_SPACE = "waits-for-space"
"""How the reason of a run begins that opens no round because the blob store is too full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceShort:
    """There is less room than is needed, in bytes."""

    needed_bytes: int
    free_bytes: int

    def reason(self) -> str:
        """The reason that the run shows; in whole MiB, so that it does not change with every byte."""
        return f"{WAITS_FOR_SPACE}: needs {_mib(self.needed_bytes)} MiB, has {self.free_bytes >> 20} MiB"


def space_for_round(*, n_sites: int, payload_bytes: int, state_bytes: int) -> int:
    """Bytes: every invited site's masked vector, their sum, the new public state, and the margin."""
    return (n_sites + 1) * payload_bytes + state_bytes + MARGIN_BYTES


def judge_space(needed_bytes: int, free_bytes: int | None) -> SpaceShort | None:
    """Whether there is too little; a store that cannot say how much it has is taken to have enough."""
    if free_bytes is None or free_bytes >= needed_bytes:
        return None
    return SpaceShort(needed_bytes=needed_bytes, free_bytes=free_bytes)


def _mib(n_bytes: int) -> int:
    return -(-n_bytes >> 20)
