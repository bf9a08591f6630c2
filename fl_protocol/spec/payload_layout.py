"""What one payload consists of: named, bounded segments, and the proof that sums over a cohort never wrap.

A ring vector is all ring32 segments in declared order, then all ring64 segments in declared order. Knows no codec: it
says which integers are admitted, not how they are made.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import rfc8785

from fl_protocol.errors import ProtocolError
from fl_protocol.ids import Sha256Hex

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_LARGEST_SUM_32 = 2**31 - 1
_LARGEST_SUM_64 = 2**63 - 1
_LARGEST_EXACT_FLOAT = 2**53
_LARGEST_LENGTH = 2**40


class LayoutInvalidError(ProtocolError):
    """A payload layout, or the document of one, is not well formed."""

    code = "payload-layout-invalid"


class CapacityError(ProtocolError):
    """A sum over the cohort could wrap around its ring, or no integer is left to express a value in."""

    code = "capacity-exceeded"


class UnknownSegmentError(ProtocolError):
    """A layout has no segment of that name."""

    code = "segment-unknown"


class Ring(StrEnum):
    """The ring in which a segment is summed: integers modulo 2**32 or 2**64."""

    RING32 = "ring32"
    RING64 = "ring64"


class SegmentKind(StrEnum):
    """What a segment holds before it is encoded, and with it the ring that carries it."""

    UPDATE = "update"
    """float32, ring32: fixed point, as fine as the cohort's size permits."""
    COUNT = "count"
    """int64, ring64: exact, 0 .. bound."""
    SCALAR = "scalar"
    """float64, ring64: fixed point in multiples of ``resolution``."""

    @property
    def ring(self) -> Ring:
        """The ring that carries segments of this kind."""
        return Ring.RING32 if self is SegmentKind.UPDATE else Ring.RING64


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One named stretch of a payload.

    Attributes:
        name: lower-case letters, digits and underscores.
        kind: what it holds.
        length: how many elements.
        bound: the largest absolute value of one element at one site, in the segment's own unit.
        resolution: the smallest step of a scalar; 1 for the other kinds.
    """

    name: str
    kind: SegmentKind
    length: int
    bound: float
    resolution: float = 1.0

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise LayoutInvalidError("a segment's name is lower-case letters, digits and underscores", name=self.name)
        if not 0 < self.length < _LARGEST_LENGTH:
            raise LayoutInvalidError("a segment has at least one element", name=self.name, length=self.length)
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise LayoutInvalidError("a bound is positive and finite", name=self.name, bound=self.bound)
        if not (math.isfinite(self.resolution) and self.resolution > 0):
            raise LayoutInvalidError("a resolution is positive and finite", name=self.name, resolution=self.resolution)
        if self.kind is not SegmentKind.SCALAR and self.resolution != 1.0:
            raise LayoutInvalidError("only a scalar has a resolution", name=self.name, kind=self.kind)
        if self.kind is SegmentKind.COUNT and self.bound != math.floor(self.bound):
            raise LayoutInvalidError("the bound of a count is an integer", name=self.name, bound=self.bound)

    @property
    def ring(self) -> Ring:
        """The ring that carries this segment."""
        return self.kind.ring

    def max_integer(self, max_sites: int) -> int:
        """The largest absolute integer that one site may put into one element of this segment.

        Invariant: ``max_sites * max_integer`` is at most 2**31 - 1 (ring32) or 2**63 - 1 (ring64), so that a sum over
        the cohort, read as a signed number, is the true sum.

        Raises:
            CapacityError: no such integer exists for that many sites.
        """
        match self.kind:
            case SegmentKind.UPDATE:
                largest = _LARGEST_SUM_32 // max_sites
            case SegmentKind.COUNT:
                largest = int(self.bound)
            case SegmentKind.SCALAR:
                steps = self.bound / self.resolution
                largest = math.ceil(steps) if math.isfinite(steps) else _LARGEST_SUM_64 + 1
        limit = _LARGEST_SUM_32 if self.ring is Ring.RING32 else _LARGEST_SUM_64
        # A float64 holds every integer up to 2**53: beyond it a bound or a step would not be what it says.
        if largest < 1 or max_sites * largest > limit or largest > _LARGEST_EXACT_FLOAT:
            raise CapacityError(
                "the sum over the cohort could wrap", segment=self.name, largest=largest, max_sites=max_sites
            )
        return largest

    def to_document(self) -> dict[str, object]:
        """The segment as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "length": self.length,
            "bound": self.bound,
            "resolution": self.resolution,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLayout:
    """The segments of one payload and the largest cohort that may sum it.

    Invariant: proved at construction, no sum over ``max_sites`` admitted payloads wraps in either ring.
    """

    segments: tuple[Segment, ...]
    max_sites: int

    def __post_init__(self) -> None:
        if not self.segments:
            raise LayoutInvalidError("a payload has at least one segment")
        if not 1 <= self.max_sites < 1 << 16:
            raise LayoutInvalidError("a cohort has 1 .. 65535 sites", max_sites=self.max_sites)
        names = [segment.name for segment in self.segments]
        if len(set(names)) != len(names):
            raise LayoutInvalidError("two segments have the same name", names=",".join(names))
        for segment in self.segments:
            segment.max_integer(self.max_sites)

    @property
    def n_ring32(self) -> int:
        """How many 32-bit elements."""
        return self._n_elements(Ring.RING32)

    @property
    def n_ring64(self) -> int:
        """How many 64-bit elements."""
        return self._n_elements(Ring.RING64)

    @property
    def n_bytes(self) -> int:
        """The size of the ring vector on the wire."""
        return 4 * self.n_ring32 + 8 * self.n_ring64

    def segment(self, name: str) -> Segment:
        """The segment of that name.

        Raises:
            UnknownSegmentError: there is none.
        """
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise UnknownSegmentError("the layout has no such segment", segment=name)

    def slice_of(self, name: str) -> slice:
        """Where the segment lies in the array of its own ring.

        Raises:
            UnknownSegmentError: there is none of that name.
        """
        wanted = self.segment(name)
        start = 0
        for segment in self.segments:
            if segment.name == name:
                break
            if segment.ring is wanted.ring:
                start += segment.length
        return slice(start, start + wanted.length)

    def max_integer(self, name: str) -> int:
        """The largest absolute integer of one element of that segment at one site. Raises UnknownSegmentError."""
        return self.segment(name).max_integer(self.max_sites)

    def digest(self) -> Sha256Hex:
        """SHA-256 of the canonical JSON (RFC 8785) of ``to_document``."""
        return Sha256Hex(hashlib.sha256(rfc8785.dumps(self.to_document())).hexdigest())  # type: ignore[arg-type]  # JSON values, typed as object

    def to_document(self) -> dict[str, object]:
        """The layout as JSON values."""
        return {"max_sites": self.max_sites, "segments": [segment.to_document() for segment in self.segments]}

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> PayloadLayout:
        """Read what ``to_document`` wrote.

        Raises:
            LayoutInvalidError: a key is missing, unknown or of the wrong type, or a value is not admitted.
            CapacityError: a sum could wrap.
        """
        _check_keys(document, {"max_sites", "segments"})
        segments = document["segments"]
        if not isinstance(segments, list):
            raise LayoutInvalidError("segments are a list")
        return cls(
            segments=tuple(_segment_from_document(item) for item in segments),
            max_sites=_integer(document["max_sites"], "max_sites"),
        )

    def _n_elements(self, ring: Ring) -> int:
        return sum(segment.length for segment in self.segments if segment.ring is ring)


def _segment_from_document(document: object) -> Segment:
    if not isinstance(document, Mapping):
        raise LayoutInvalidError("a segment is an object")
    _check_keys(document, {"name", "kind", "length", "bound", "resolution"})
    name, kind = document["name"], document["kind"]
    if not isinstance(name, str):
        raise LayoutInvalidError("a segment's name is text")
    if not isinstance(kind, str) or kind not in set(SegmentKind):
        raise LayoutInvalidError("a segment's kind is update, count or scalar", name=name, kind=str(kind)[:80])
    return Segment(
        name=name,
        kind=SegmentKind(kind),
        length=_integer(document["length"], "length"),
        bound=_number(document["bound"], "bound"),
        resolution=_number(document["resolution"], "resolution"),
    )


def _check_keys(document: Mapping[str, object], expected: set[str]) -> None:
    if set(document) != expected:
        odd = ",".join(sorted(str(key)[:40] for key in expected ^ set(document)))
        raise LayoutInvalidError("a layout document has exactly its known keys", odd_keys=odd)


def _integer(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise LayoutInvalidError("an integer was expected", key=key)
    return value


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LayoutInvalidError("a number was expected", key=key)
    return float(value)
