"""``adapter: {kind: published-codes}``: what a vocabulary run publishes: 1 for a published code, 0 for another."""

from __future__ import annotations

from dataclasses import dataclass

from fl_protocol.spec.adapters.adapter_spec import AdapterDigests, AdapterKind, AdapterSpec
from fl_protocol.spec.faults import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCodesSpec(AdapterSpec):
    """One number a code of the list. Has no keys of its own."""

    @property
    def kind(self) -> AdapterKind:
        """Published codes."""
        return AdapterKind.PUBLISHED_CODES

    @property
    def summary(self) -> str:
        """What a page says."""
        return "no weights: which codes are published"

    def options(self) -> dict[str, object]:
        """None."""
        return {}


def read_published_codes(section: Reader, digests: AdapterDigests) -> PublishedCodesSpec:
    """No keys."""
    del section
    return PublishedCodesSpec(layout_sha256=digests.layout_sha256, initial_sha256=digests.initial_sha256)
