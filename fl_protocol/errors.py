"""The root of every error that Wardround raises on purpose.

    WardroundError                  code, message for people, facts for machines
    └── ProtocolError               fl_protocol: a rule that both ends share was broken
        ├── IdentifierInvalidError      ids
        ├── RunSpecFaultsError ...      spec
        ├── CapacityError ...           spec.payload_layout
        ├── NonFiniteUpdateError ...    codec
        ├── SignatureInvalidError ...   signing
        └── SecAggRefusedError ...      secagg

An error is raised at the fact and translated once, at the edge of a process (gRPC status, problem document, exit code).
"""

from __future__ import annotations

from typing import ClassVar

Fact = str | int | float | bool | None
"""What may be told of an error: an identifier or a figure."""


class WardroundError(Exception):
    """Base of all errors that Wardround raises on purpose.

    Attributes:
        code: stable, lower-case, hyphenated; what a program matches on.
        facts: identifiers and figures that locate the error; never a record, a tensor or a key.
    """

    code: ClassVar[str] = "wardround-error"

    def __init__(self, message: str, **facts: Fact) -> None:
        """Keep the sentence for people and the facts for machines."""
        super().__init__(message)
        self.message = message
        self.facts: dict[str, Fact] = dict(facts)

    def __str__(self) -> str:
        """The sentence, then the facts."""
        if not self.facts:
            return self.message
        listed = ", ".join(f"{key}={value}" for key, value in self.facts.items())
        return f"{self.message} ({listed})"


class ProtocolError(WardroundError):
    """A rule that coordinator and sites share was broken."""

    code = "protocol-error"
