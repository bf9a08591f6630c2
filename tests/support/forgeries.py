"""Messages of the secure sum as a hostile coordinator puts them together out of what it heard."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fl_protocol.ids import SiteId
from fl_protocol.secagg.messages import DealtShares, SignedList
from fl_protocol.signing.signed import SignedBody
from site_agent.link import instructions as asked
from site_agent.link.instructions import Instruction


def list_of(*messages: bytes) -> bytes:
    """M2, M6 or M8 of these statements, in this order, whatever they are."""
    return SignedList(entries=tuple(SignedBody.decode(message) for message in messages)).encode()


def only(names: Collection[SiteId], relayed: Instruction) -> Instruction:
    """M2 or M6 with the statements of these sites alone."""
    assert isinstance(relayed, asked.RelayKeys | asked.RelaySurvivors)
    entries = SignedList.decode(relayed.message).entries
    kept = [entry.encode() for entry in entries if site_in_a_body(entry) in names]
    return replace(relayed, message=list_of(*kept))


def site_in_a_body(entry: SignedBody) -> SiteId:
    # Every statement's body begins with the name of who speaks.
    length = int.from_bytes(entry.body[:4])
    return SiteId(entry.body[4 : 4 + length].decode())


def only_dealers(names: Collection[SiteId], relayed: Instruction) -> Instruction:
    """M4 with the shares of these dealers alone."""
    assert isinstance(relayed, asked.RelayShares)
    entries = DealtShares.decode(relayed.message).entries
    kept = tuple(entry for entry in entries if site_in_a_body(entry.header) in names)
    return replace(relayed, message=DealtShares(entries=kept).encode())
