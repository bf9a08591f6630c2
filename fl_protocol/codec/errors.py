"""What a payload, or a sum of payloads, can be refused for.

CodecError
├── MissingSegmentError         the payload lacks a segment (for one too many: UnknownSegmentError of spec)
├── SegmentShapeError           length or dtype is not the declared one
├── NonFiniteUpdateError        NaN or infinity
├── ClipExceededError           a value is over its segment's bound
├── SumSpentError               a sum that was given up is looked at after it was used up
└── ImplausibleSumError         a decoded sum that no honest cohort can have produced
"""

from __future__ import annotations

from fl_protocol.errors import ProtocolError


class CodecError(ProtocolError):
    """A payload does not fit the layout that was agreed, or a sum does not."""

    code = "codec-error"


class MissingSegmentError(CodecError):
    """A payload lacks a segment of the layout."""

    code = "segment-missing"


class SegmentShapeError(CodecError):
    """A segment's shape or dtype is not what the layout says."""

    code = "segment-shape"


class NonFiniteUpdateError(CodecError):
    """A value is NaN or infinite."""

    code = "update-not-finite"


class ClipExceededError(CodecError):
    """A value is over its segment's bound; the caller clips, we never do."""

    code = "bound-exceeded"


class SumSpentError(CodecError):
    """A sum was given up, and its memory holds something else by now."""

    code = "sum-spent"


class ImplausibleSumError(CodecError):
    """A sum lies outside what the declared number of honest sites can add up to."""

    code = "sum-implausible"
