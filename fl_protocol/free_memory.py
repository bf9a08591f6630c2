"""What the C library does with memory that was freed: a little stays for the next chunk, a vector's goes back at once.

Chunks of a mebibyte come and go by the thousand. Left alone, glibc hands each back to the kernel when it is freed, and
the next is new pages again, each of them cleared: a third of the time of a transfer (docs/benchmarks.md, Transport).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress

# Of glibc's malloc.h, which does not change them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT_BYTES = 16 << 20
"""What stays free at the end of each arena: more than the chunks of a transfer that are read ahead."""

_LARGEST_CHUNK_BYTES = 4 << 20
"""What is larger is a vector, and has its own mapping, which goes back to the kernel when it is freed."""


def keep_room_for_chunks(environment: Mapping[str, str]) -> None:
    """Let this process keep the room of freed chunks, where its C library can be asked (glibc).

    What an operator has set for the allocator (``MALLOC_..._``, ``GLIBC_TUNABLES``) is left as it is.
    """
    if any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get("GLIBC_TUNABLES", ""):
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_CHUNK_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_free_memory() -> None:
    """Ask the C library for what it keeps, where it can be asked (glibc); takes milliseconds.

    For the moment before a vector is allocated, which never fits a piece: without this, a sum's memory came on top of
    that of the uploads before it, which grows with the cohort.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
