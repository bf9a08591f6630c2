"""Network namespaces for tests: a machine of its own for one process, joined to this one by a cable that can be cut.

Everything here belongs to the test that made it: names carry this process's number, addresses come from 198.18.0.0/15,
which is set aside for tests of networks (RFC 2544), and all of it is gone when the test ends. Needs root.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import need_root, tool

_numbers = itertools.count()
_N_SUBNETS = 128 * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One namespace and the cable to it.

    Attributes:
        name: of the namespace.
        outside: the cable's end on this machine, with ``outside_address``.
        inside: the end in the namespace, with ``inside_address``. There is no default route: what is inside reaches
            ``outside_address`` and nothing else.
    """

    name: str
    outside: str
    inside: str
    outside_address: str
    inside_address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command to run it inside; the process keeps its number."""
        return (str(tool("ip")), "netns", "exec", self.name)

    def route_to(self, address: str) -> None:
        """Let the inside reach another address of this machine through the cable."""
        self.run("ip", "route", "replace", f"{address}/32", "via", self.outside_address)

    def cut(self) -> None:
        """Take the link down, as the machine inside sees it."""
        self.run("ip", "link", "set", self.inside, "down")

    def join(self) -> None:
        """Take the link up again. Routes through the other end went with it and are made again by who needs them."""
        self.run("ip", "link", "set", self.inside, "up")

    def shape(self, *, kbit_per_s: int) -> None:
        """Limit both directions to a rate."""
        words = ("root", "tbf", "rate", f"{kbit_per_s}kbit", "burst", "16kbit", "latency", "200ms")
        call("tc", "qdisc", "replace", "dev", self.outside, *words)
        self.run("tc", "qdisc", "replace", "dev", self.inside, *words)

    def unshape(self) -> None:
        """Take the limit away."""
        call("tc", "qdisc", "del", "dev", self.outside, "root")
        self.run("tc", "qdisc", "del", "dev", self.inside, "root")

    def lose(self, *, share: float) -> None:
        """Drop this share of the packets, at random, in both directions."""
        for chain in ("INPUT", "OUTPUT"):
            rule = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.4f}", "-j", "DROP")
            self.run("iptables", "-A", chain, *rule)

    @contextmanager
    def resetting(self) -> Iterator[None]:
        """Answer every packet that goes out with a reset, which breaks the connections that are open."""
        rule = ("OUTPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
        self.run("iptables", "-I", *rule)
        try:
            yield
        finally:
            self.run("iptables", "-D", *rule)

    def n_bytes_out(self) -> int:
        """How many bytes came out of the namespace so far, headers included."""
        return int(Path(f"/sys/class/net/{self.outside}/statistics/rx_bytes").read_text())

    def run(self, *words: str) -> str:
        """A command inside."""
        return call("ip", "netns", "exec", self.name, *words)


@contextmanager
def network_namespace() -> Iterator[Namespace]:
    """A namespace with a cable to this machine; both are gone at the end."""
    need_root()
    for name in ("ip", "tc", "iptables"):
        tool(name)
    number = (os.getpid() * 16 + next(_numbers)) % _N_SUBNETS
    second, third, fourth = 18 + number // 4096 % 2, number // 64 % 64, number % 64 * 4
    label = f"wr{os.getpid()}x{number % 64}"
    made = Namespace(
        name=f"{label}-site",
        outside=f"{label}o",
        inside=f"{label}i",
        outside_address=f"198.{second}.{third}.{fourth + 1}",
        inside_address=f"198.{second}.{third}.{fourth + 2}",
    )
    call("ip", "netns", "add", made.name)
    try:
        call("ip", "link", "add", made.outside, "type", "veth", "peer", "name", made.inside, "netns", made.name)
        call("ip", "addr", "add", f"{made.outside_address}/30", "dev", made.outside)
        call("ip", "link", "set", made.outside, "up")
        made.run("ip", "addr", "add", f"{made.inside_address}/30", "dev", made.inside)
        made.run("ip", "link", "set", "lo", "up")
        made.run("ip", "link", "set", made.inside, "up")
        yield made
    finally:
        with suppress(AssertionError):
            call("ip", "link", "del", made.outside)
        call("ip", "netns", "del", made.name)


def call(*words: str) -> str:
    """A command of this machine; what it says when it fails is in the error."""
    program, *arguments = words
    outcome = subprocess.run([str(tool(program)), *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert outcome.returncode == 0, f"{' '.join(words)}: {outcome.stderr}"
    return outcome.stdout
