"""Writes secagg.json: one whole exchange of five sites in which one drops after dealing shares; entropy fixed.

    python tests/vectors/make_secagg_vectors.py > tests/vectors/secagg.json

HPKE draws its own ephemeral keys, so that ciphertexts (and what is signed over them) differ from one run to the next:
they are recorded as inputs. ``test_secagg_vectors.py`` checks the file by code of its own, and replays it.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from fl_protocol.codec.ring_vector import RingVector
from fl_protocol.secagg.prg import Keystream
from fl_protocol.testing.entropy import SeededEntropy
from fl_protocol.testing.federation import Federation, LastSent, small_layout
from fl_protocol.testing.strategies import site_names

SEED = "vectors"
LOST = "site-2"


def main() -> None:
    sites = site_names(5)
    layout = small_layout(n_ring32=7, n_ring64=3, max_sites=8)
    federation = Federation(sites, layout, seed=SEED)
    stream = Keystream(b"\x5a" * 32)
    vectors = {}
    for site in sites:
        update = np.frombuffer(stream.read(28), "<i4") >> 4
        count = np.frombuffer(stream.read(24), "<u8") % 1000
        vectors[site] = RingVector(ring32=update.view("<u4").copy(), ring64=count.astype("<u8"))
    opened = federation.open_exchange()
    outcome = federation.exchange(vectors, last_sent={LOST: LastSent.M3}, opened=opened)
    said = outcome.conversation
    document = {
        "suite": "SA1",
        "description": "five sites; site-2 vanishes after M3; chunk_bytes 16; all byte strings in hexadecimal",
        "exchange_index": 0,
        "exchange_attempt": 0,
        "chunk_bytes": federation.params.chunk_bytes,
        "layout": layout.to_document(),
        "coordinator_spki": federation.coordinator.spki_der.hex(),
        "entropy": {site: entropy_of(federation, site, opened) for site in sites},
        "inputs": {site: vectors[site].to_bytes().hex() for site in sites},
        "m0": opened.manifest.encode().hex(),
        "m1": hexed(said.m1s),
        "m2": said.m2.hex(),
        "m3": hexed(said.m3s),
        "m4": hexed(said.m4s),
        "m5": hexed(said.m5s),
        "uploads": {site: upload.to_bytes().hex() for site, upload in said.uploads.items()},
        "m6": said.m6.hex(),
        "m7": hexed(said.m7s),
        "m8": said.m8.hex(),
        "m9": hexed(said.m9s),
        "m10": said.m10.hex(),
        "survivors": list(outcome.survivors),
        "sum": outcome.total.to_bytes().hex(),
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def entropy_of(federation: Federation, site: str, opened: object) -> str:
    """The bytes that a site draws, in order: rho, b, transport key, the polynomials of rho, those of b."""
    from fl_protocol.spec.round_spec import RoundManifest

    context = RoundManifest.decode(opened.manifest.body).exchange(0, 0)
    return SeededEntropy(f"{federation.seed}/{site}/{context.encode().hex()}").draw(32 * (3 + 3 + 3)).hex()


def hexed(messages: dict[str, bytes]) -> dict[str, str]:
    return {site: message.hex() for site, message in messages.items()}


if __name__ == "__main__":
    main()
