"""The trainer's own program, in float32 on every processor: in bfloat16 the order of sums is felt."""

from __future__ import annotations

from site_agent.training import device
from site_agent.training.__main__ import main

device.cpu_flags = frozenset

if __name__ == "__main__":
    raise SystemExit(main())
