"""``python -m benchmarks secagg | rounds | transport | audit | studies | timelines | sizing | training [--json]``."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "secagg": "the secure sum: masking, adding, unmasking, bytes and milliseconds a site",
    "rounds": "a round without training: seconds, CPU and memory, from 3 to 200 sites",
    "transport": "uploads and downloads beside a bare gRPC stream, slow sites, a line that breaks",
    "audit": "the audit log: appends a second, verifying a million events, proofs about them",
    "timelines": "the study trial-timelines: federated, pooled, local-only and two baselines, a cell at a time",
    "studies": "a study's table, resumable: federated, pooled, local-only at equal steps, over seeds",
    "sizing": "what each program takes in a real demonstration: memory, CPU and disk",
    "training": "the demo's study: federated beside local-only training at equal steps, seconds a step",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmark with the remaining arguments."""
    if not arguments or arguments[0] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME [--json]\n")
        for name, purpose in BENCHMARKS.items():
            print(f"  {name:10} {purpose}")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    code: int = importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
