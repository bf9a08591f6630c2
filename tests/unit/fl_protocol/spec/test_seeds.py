from __future__ import annotations

import hashlib

from fl_protocol.ids import SiteId
from fl_protocol.spec.seeds import training_seed


def test_seed_is_the_start_of_sha256_over_canonical_json() -> None:
    text = b'["wardround/training-seed",7,"st-mary",2,1]'
    expected = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    assert training_seed(run_seed=7, site_id=SiteId("st-mary"), round_index=2, round_attempt=1) == expected


def test_seed_of_each_site_round_and_attempt_is_another() -> None:
    seeds = {
        training_seed(run_seed=run, site_id=SiteId(site), round_index=index, round_attempt=attempt)
        for run in (1, 2)
        for site in ("a", "b")
        for index in range(5)
        for attempt in range(5)
    }
    assert len(seeds) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
