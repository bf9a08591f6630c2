"""What holds for every test: no property is judged by how fast this machine draws or computes examples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Where CI is set, Hypothesis takes its own profile "ci", which says the same and draws no luck besides.
if "CI" not in os.environ:
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
