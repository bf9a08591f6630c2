"""What `helm test` runs: whether addresses can be reached from this pod, and whether that is as it should be."""

from __future__ import annotations

import argparse
import socket
import sys

TIMEOUT_S = 5.0


def fault_of(address: str) -> str | None:
    """Why a TCP connection does not come about; None where it does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S):
            return None
    except OSError as error:
        return str(error)


def main() -> int:
    """Print a line an address; 1 where one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expect", choices=("open", "closed"), required=True)
    parser.add_argument("addresses", nargs="+", metavar="HOST:PORT")
    options = parser.parse_args()
    is_as_expected = True
    for address in options.addresses:
        fault = fault_of(address)
        is_open = fault is None
        if is_open == (options.expect == "open"):
            sys.stdout.write(f"ok   {address} is {options.expect}\n")
            continue
        is_as_expected = False
        if is_open:
            advice = "this pod must have no network: does the cluster's network enforce NetworkPolicies?"
        else:
            advice = f"{fault}: look at networkPolicy, the firewall and the address"
        sys.stdout.write(f"FAIL {address} is {'open' if is_open else 'closed'}; {advice}\n")
    return 0 if is_as_expected else 1


if __name__ == "__main__":
    raise SystemExit(main())
