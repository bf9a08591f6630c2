"""Give memory that was freed back to the machine, before a vector is allocated.

Uploads arrive in chunks of a mebibyte, in many threads; the C library keeps what they freed in pieces, for more of the
same. A vector never fits a piece: without this, a sum's memory came on top of that of the uploads before it, which
grows with the cohort.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_free_memory() -> None:
    """Ask the C library for it, where it can be asked (glibc); takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
