"""What DNS says of a host, and what kind of addresses those are."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from dataclasses import dataclass
from enum import StrEnum

from site_agent.link.faults import PathFault, fault_of_dns

_TIMEOUT_S = 10.0
_ANYWHERE = {"0.0.0.0", "::"}  # noqa: S104 # what is compared, not bound


class AddressKind(StrEnum):
    """What the addresses of a name have in common, the most telling first."""

    ITSELF = "this machine itself"
    PRIVATE = "private"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A host's addresses, or why there are none.

    Attributes:
        is_literal: the host was given as an address; nobody was asked.
    """

    addresses: tuple[str, ...] = ()
    fault: PathFault | None = None
    is_literal: bool = False

    @property
    def kind(self) -> AddressKind:
        """What the addresses are."""
        parsed = [ipaddress.ip_address(address.partition("%")[0]) for address in self.addresses]
        if any(one.is_loopback or str(one) in _ANYWHERE for one in parsed):
            return AddressKind.ITSELF
        return AddressKind.PRIVATE if any(not one.is_global for one in parsed) else AddressKind.PUBLIC


def resolve(host: str) -> Resolved:
    """Ask as every connection would ask. The system's own waits may be long; this one ends after ten seconds."""
    try:
        return Resolved(addresses=(str(ipaddress.ip_address(host)),), is_literal=True)
    except ValueError:
        pass
    answers: queue.SimpleQueue[Resolved] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_ask(host)), name="resolve", daemon=True).start()
    try:
        return answers.get(timeout=_TIMEOUT_S)
    except queue.Empty:
        return Resolved(fault=PathFault.DNS_SILENT)


def _ask(host: str) -> Resolved:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Resolved(fault=fault_of_dns(error))
    except (OSError, UnicodeError):
        return Resolved(fault=PathFault.HOST_UNKNOWN)
    return Resolved(addresses=tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))
