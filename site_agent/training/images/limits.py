"""How large an image may be."""

from __future__ import annotations

MAX_IMAGE_BYTES = 512 << 20
"""Of a file, and of what a deflated one unfolds to."""

MAX_PIXELS = 50_000_000
"""Of one frame. 150 MB as RGB: a chest radiograph has 12 million; a whole slide has a thousand times as many."""
