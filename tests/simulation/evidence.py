"""What an outsider who sees everything writes down: every mask, statement, reveal and log line of a simulation.

Nothing of it is asked of the code that is judged: masks are seen at the one kernel, statements where the role makes
them and where they leave, sums as bytes in the coordinator's folder, rows through a connection of our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import structlog

from coordinator.services import aggregate_round
from fl_protocol.secagg.site_role import masked
from fl_protocol.secagg.site_role.role import SiteRole
from fl_protocol.spec.context import ExchangeContext
from fl_protocol.spec.round_spec import RoundManifest
from fl_protocol.wire.convert import exchange_from_proto
from fl_protocol.wire.v1 import round_pb2
from tests.simulation.processes import CURRENT
from tests.simulation.wire import Recorded

EXPECTED_ERRORS = frozenset({"training_failed"})
"""What may be logged as an error though nothing is wrong with the product: a trainer that an operation killed."""
ERRORS_ON_A_FULL_DISK = frozenset(
    {
        "effect_failed",
        "call_failed_unexpectedly",
        "janitor_failed",
        "janitor_step_failed",
        "loop_failed",
        "task_failed",
    }
)


@dataclass
class Evidence:
    """The notes of one world."""

    violations: list[str] = field(default_factory=list)
    masks: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    payloads: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    statements: dict[tuple[str, str, bytes], bytes] = field(default_factory=dict)
    sent: dict[tuple[str, str, bytes], bytes] = field(default_factory=dict)
    revealed: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    unmasked: dict[tuple[bytes, int, int], tuple[str, ...]] = field(default_factory=dict)
    logs: list[MutableMapping[str, Any]] = field(default_factory=list)
    was_disk_full: bool = False
    was_set_back: bool = False

    def complain(self, what: str) -> None:
        self.violations.append(what)

    # Masks

    def note_masking(self, site: str, context: bytes, vector_sha256: bytes) -> None:
        held = self.payloads.setdefault((site, context), vector_sha256)
        if held != vector_sha256:
            self.complain(f"{site} masked two payloads in one exchange")

    def note_mask_key(self, site: str, key: bytes, vector_sha256: bytes) -> None:
        held = self.masks.setdefault((site, key), vector_sha256)
        if held != vector_sha256:
            self.complain(f"{site} used one mask seed for two vectors")

    # Statements

    def note_statement(self, kind: str, site: str, context: bytes, statement: bytes) -> None:
        held = self.statements.setdefault((kind, site, context), statement)
        if held != statement:
            self.complain(f"{site} signed two different {kind} in one exchange")

    def note_sent(self, call: Recorded) -> None:
        read = _STATEMENTS.get(call.method.rpartition("/")[2])
        if read is None or not call.messages:
            return
        kind, request_class, attribute = read
        request = request_class.FromString(call.messages[0])
        source = request.header if kind == "M5" else request
        context = exchange_from_proto(source.exchange).encode()
        statement: bytes = getattr(source, attribute)
        held = self.sent.setdefault((kind, call.site, context), statement)
        if held != statement:
            self.complain(f"{call.site} sent two different {kind} in one exchange")
        if kind == "M9":
            self._note_reveal(call.site, context)

    def _note_reveal(self, site: str, context: bytes) -> None:
        payload = self.payloads.get((site, context))
        if payload is None:
            self.complain(f"{site} revealed shares in an exchange in which it masked nothing")
            return
        held = self.revealed.setdefault((site, payload), context)
        if held != context:
            self.complain(f"{site} sent M9 for one payload in two exchanges")

    # The coordinator

    def note_unmasking(self, manifest: bytes, exchange: tuple[int, int], sites: Sequence[str]) -> None:
        held = self.unmasked.setdefault((manifest, *exchange), tuple(sites))
        if held != tuple(sites):
            self.complain(f"one exchange was unmasked over {held} and over {tuple(sites)}")

    # Logs

    def note_log(self, _: Any, level: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if level in {"error", "exception", "critical"} and not self._is_expected(entry):
            cause = entry.get("exc_info")
            shown = f" ({cause!r})" if isinstance(cause, BaseException) else f" ({_present_error()!r})"
            self.complain(f"unexpected error in the log: {dict(entry)}{shown}")
        raise structlog.DropEvent

    def _is_expected(self, entry: MutableMapping[str, Any]) -> bool:
        name = entry.get("event")
        return name in EXPECTED_ERRORS or (
            (self.was_disk_full and name in ERRORS_ON_A_FULL_DISK) or (self.was_set_back and name == "history_forked")
        )


_STATEMENTS: dict[str, tuple[str, Any, str]] = {
    "AdvertiseKeys": ("M1", round_pb2.AdvertiseKeysRequest, "advertisement"),
    "ShareKeys": ("M3", round_pb2.ShareKeysRequest, "deal"),
    "UploadBlob": ("M5", round_pb2.UploadBlobRequest, "masked_input"),
    "ConfirmSurvivors": ("M7", round_pb2.ConfirmSurvivorsRequest, "confirmation"),
    "RevealShares": ("M9", round_pb2.RevealSharesRequest, "reveal"),
}


def _present_error() -> BaseException | None:
    import sys

    return sys.exc_info()[1]


@contextmanager
def watched(evidence: Callable[[], Evidence]) -> Iterator[None]:
    """Watch the kernel, the roles, the unmasking and the log, for whichever world is the present one."""
    at_work: list[tuple[str, bytes, bytes]] = []
    mask, mask_ranges = masked.mask, masked.mask_ranges
    confirm, reveal = SiteRole.confirm, SiteRole.reveal
    recover = aggregate_round.recover_mask_terms

    def watched_mask(state: Any, vector: Any, **rest: Any) -> Any:
        site, context = state.terms.site_id, state.terms.context.encode()
        digest = hashlib.sha256(vector.to_bytes()).digest()
        evidence().note_masking(site, context, digest)
        at_work.append((site, context, digest))
        try:
            return mask(state, vector, **rest)
        finally:
            at_work.pop()

    def watched_ranges(vector: Any, terms: Any, n_ranges: int) -> Any:
        site, _, digest = at_work[-1]
        for term in terms:
            evidence().note_mask_key(site, term.key32, digest)
            evidence().note_mask_key(site, term.key64, digest)
        return mask_ranges(vector, terms, n_ranges)

    def watched_confirm(role: SiteRole, m6: bytes, **rest: Any) -> bytes:
        terms = role._current().terms  # type: ignore[union-attr]
        said = confirm(role, m6, **rest)
        evidence().note_statement("M7", terms.site_id, terms.context.encode(), said)
        return said

    def watched_reveal(role: SiteRole, m8: bytes) -> bytes:
        terms = role._current().terms  # type: ignore[union-attr]
        said = reveal(role, m8)
        evidence().note_statement("M9", terms.site_id, terms.context.encode(), said)
        return said

    def watched_recover(surviving: Any, m9s: Any) -> Any:
        opened = surviving.shared.keyed.opened
        exchange = (opened.exchange_index, opened.exchange_attempt)
        evidence().note_unmasking(opened.manifest.body, exchange, surviving.sites)
        return recover(surviving, m9s)

    def log_to_evidence(logger: Any, level: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        process = CURRENT.get()
        if process is not None:
            entry["process"] = process.name
        return evidence().note_log(logger, level, entry)

    before = structlog.get_config()
    structlog.configure(processors=[log_to_evidence], cache_logger_on_first_use=False)
    try:
        with ExitStack() as stack:
            for place, name, instead in (
                (masked, "mask", watched_mask),
                (masked, "mask_ranges", watched_ranges),
                (SiteRole, "confirm", watched_confirm),
                (SiteRole, "reveal", watched_reveal),
                (aggregate_round, "recover_mask_terms", watched_recover),
            ):
                stack.enter_context(mock.patch.object(place, name, instead))
            yield
    finally:
        structlog.configure(**before)


def round_of_manifest(body: bytes) -> tuple[int, int]:
    manifest = RoundManifest.decode(body)
    return manifest.round_index, manifest.round_attempt


def text_of(context: bytes) -> str:
    found = ExchangeContext.decode(context)
    return f"{found.round_index}.{found.round_attempt}.{found.exchange_index}.{found.exchange_attempt}"
