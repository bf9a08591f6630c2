from __future__ import annotations

import hashlib
import random

from coordinator.services.prefix_digests import DigestsOfBlobs, PrefixDigests

MIB = 1 << 20
DATA = random.Random(7).randbytes(2 * MIB + 99)
CHUNKS = [(at, DATA[at : at + MIB]) for at in range(0, len(DATA), MIB)]
PREFIXES = [hashlib.sha256(DATA[: at + MIB]).digest() for at, _ in CHUNKS]


def test_digest_of_a_chunk_is_that_of_the_blob_up_to_its_end_and_is_not_computed_twice() -> None:
    digests = PrefixDigests()
    assert [digests.through(data, offset=at) for at, data in CHUNKS] == PREFIXES
    # Other bytes tell that the second time nothing is looked at.
    assert [digests.through(b"", offset=at) for at, _ in CHUNKS] == PREFIXES


def test_end_of_a_chunk_that_was_begun_in_its_middle_is_the_same_boundary() -> None:
    digests = PrefixDigests()
    assert digests.through(CHUNKS[0][1][9:], offset=9) is None
    for at, data in CHUNKS:
        digests.through(data, offset=at)
    assert digests.through(DATA[MIB + 9 : 2 * MIB], offset=MIB + 9) == PREFIXES[1]


def test_stream_that_begins_beyond_what_is_known_is_not_given_a_digest_and_spoils_none() -> None:
    digests = PrefixDigests()
    assert digests.through(CHUNKS[1][1], offset=MIB) is None
    assert [digests.through(data, offset=at) for at, data in CHUNKS] == PREFIXES


def test_blobs_that_were_sent_longest_ago_are_forgotten() -> None:
    known = DigestsOfBlobs(max_remembered=2)
    first = known.of("a")
    known.of("b")
    assert known.of("a") is first
    known.of("c")
    assert known.of("a") is first
    second = known.of("b")
    assert known.of("b") is second
    assert known.of("c") is not first
