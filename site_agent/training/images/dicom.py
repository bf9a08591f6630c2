"""A frame of a DICOM file as eight-bit RGB: what a viewer shows by the file's own tags. Knows no manifest.

For grey images: stored values x slope + intercept (DICOM PS3.3, C.11.1), then the first window that the file names
(C.11.2.1.2, linear, linear-exact or sigmoid; else its lookup table; else from least to greatest), then inverted where
the file says MONOCHROME1. The windowing arithmetic is here, so that it is the same whatever pydicom's version.

Safety: pydicom's warnings may quote values of a file, so they are not shown. It unfolds a deflated file whole, of
whatever length, so that this length is looked at before.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from site_agent.training.images.errors import ImageFault, ImageRefusedError, ImageUndecodableError
from site_agent.training.images.limits import MAX_IMAGE_BYTES, MAX_PIXELS

FloatArray = NDArray[np.float64]
PixelArray = NDArray[np.uint8]

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_PALETTE = "PALETTE COLOR"
_META_AT = 132
"""Behind the preamble and the mark."""
_INFLATED_AT_ONCE = 1 << 20
_DAMAGE = (
    InvalidDicomError, BytesLengthException, struct.error, zlib.error, AttributeError, ValueError, TypeError, KeyError,
    IndexError, OverflowError, OSError, EOFError,
)  # fmt: skip
"""What pydicom, and the decoders that it asks, raise over a file that is not what it says."""


def decode_dicom(content: bytes, *, frame: int) -> PixelArray:
    """Decode one frame.

    Args:
        content: the file's bytes, with preamble and mark.
        frame: from 0.

    Returns:
        uint8, shape (rows, columns, 3).

    Raises:
        ImageRefusedError: a frame has too many pixels, or the file unfolds to too many bytes.
        ImageUndecodableError: no pixels, no such frame, damaged, or of a kind that cannot be shown.
    """
    with _pydicom_silenced():
        try:
            _check_inflated(content)
            dataset = pydicom.dcmread(io.BytesIO(content))
            _check_size(dataset, frame)
            stored = pixel_array(dataset, index=frame)
            return _shown(stored, dataset)
        except (NotImplementedError, RuntimeError):
            # No decoder for this transfer syntax, or one that is not installed.
            raise _undecodable(ImageFault.COMPRESSION_UNKNOWN) from None
        except Image.DecompressionBombError:
            # A compressed frame has a header of its own, which may tell another size than the file's.
            raise _too_many_pixels() from None
        except _DAMAGE:
            raise _undecodable(ImageFault.DAMAGED) from None


def windowed(values: FloatArray, *, center: float, width: float, function: str) -> FloatArray:
    """Values as brightness in [0, 1], by a window (PS3.3, C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: float64, any shape, in the modality's unit.
        center: c.
        width: w; at least 1 for LINEAR, else positive.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Raises:
        ImageUndecodableError: the width is not allowed, or nobody knows the function.
    """
    if function == "LINEAR" and width >= 1:
        # y = (x - (c - 0.5)) / (w - 1) + 0.5, cut at both ends; a window one wide is a step at c - 0.5.
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    if function == "LINEAR_EXACT" and width > 0:
        return ((values - center) / width + 0.5).clip(0, 1)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp((-4 * (values - center) / width).clip(-700, 700)))
    raise _undecodable(ImageFault.WINDOW_UNUSABLE)


def _check_inflated(content: bytes) -> None:
    """Refuse a deflated file (PS3.5, A.5) that unfolds to more than any other file may have."""
    stream = io.BytesIO(content)
    stream.seek(_META_AT)
    # As pydicom itself finds where the deflated part begins.
    meta = read_dataset(
        stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag.group != 2
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, rest, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
    while rest and not inflater.eof:
        n_bytes += len(inflater.decompress(rest, _INFLATED_AT_ONCE))
        rest = inflater.unconsumed_tail
        if n_bytes > MAX_IMAGE_BYTES:
            raise ImageRefusedError("an image's file unfolds to too many bytes", fault=ImageFault.FILE_TOO_LARGE.value)


def _check_size(dataset: FileDataset, frame: int) -> None:
    if "PixelData" not in dataset:
        raise _undecodable(ImageFault.NO_PIXELS)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > MAX_PIXELS:
        raise _too_many_pixels()
    if not 0 <= frame < int(dataset.get("NumberOfFrames") or 1):
        raise _undecodable(ImageFault.NO_SUCH_FRAME)


def _shown(stored: NDArray[np.generic], dataset: Dataset) -> PixelArray:
    photometry = str(dataset.PhotometricInterpretation)
    if photometry in _GREY:
        return _shown_grey(stored, dataset, is_inverted=photometry == "MONOCHROME1")
    if photometry == _PALETTE:
        colours = apply_color_lut(stored, dataset)
        bits = _bits_of_table(dataset.get("RedPaletteColorLookupTableDescriptor"))
        return _eight_bits(colours.astype(np.float64)[:, :, :3] / (2**bits - 1))
    if photometry in _COLOUR and stored.ndim == 3:
        return _eight_bits(stored.astype(np.float64) / (2 ** int(dataset.BitsStored) - 1))
    raise _undecodable(ImageFault.PHOTOMETRY_UNKNOWN)


def _shown_grey(stored: NDArray[np.generic], dataset: Dataset, *, is_inverted: bool) -> PixelArray:
    if stored.ndim != 2:
        raise _undecodable(ImageFault.PHOTOMETRY_UNKNOWN)
    measured = apply_modality_lut(stored, dataset)
    values: FloatArray = measured.astype(np.float64)
    if not np.isfinite(values).all():
        raise _undecodable(ImageFault.DAMAGED)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is not None and width is not None:
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        brightness = windowed(values, center=center, width=width, function=function)
    elif tables := dataset.get("VOILUTSequence"):
        bits = _bits_of_table(tables[0].get("LUTDescriptor"))
        brightness = apply_voi(measured, dataset).astype(np.float64) / (2**bits - 1)
    else:
        brightness = _stretched(values, stored, dataset)
    return _eight_bits(np.repeat((1 - brightness if is_inverted else brightness)[:, :, None], 3, axis=2))


def _stretched(values: FloatArray, stored: NDArray[np.generic], dataset: Dataset) -> FloatArray:
    """From least to greatest; the value that fills what lies outside the picture does not count."""
    padding = dataset.get("PixelPaddingValue")
    shown = values if padding is None else values[stored != padding]
    if shown.size == 0:
        return np.zeros_like(values)
    low, high = float(shown.min()), float(shown.max())
    return np.zeros_like(values) if low == high else ((values - low) / (high - low)).clip(0, 1)


def _eight_bits(brightness: FloatArray) -> PixelArray:
    return np.rint(brightness.clip(0, 1) * 255).astype(np.uint8)


def _bits_of_table(descriptor: object) -> int:
    """The third value of a lookup table's descriptor: how many bits an entry has."""
    if not isinstance(descriptor, MultiValue | list | tuple) or len(descriptor) != 3:
        raise _undecodable(ImageFault.DAMAGED)
    return int(descriptor[2])


def _first(value: object) -> float | None:
    """The first of a tag's values; a file that names several windows names the usual one first."""
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value is None else float(str(value))


def _too_many_pixels() -> ImageRefusedError:
    message = "an image has more pixels than this trainer opens"
    return ImageRefusedError(message, fault=ImageFault.TOO_MANY_PIXELS.value, most_pixels=MAX_PIXELS)


def _undecodable(fault: ImageFault) -> ImageUndecodableError:
    return ImageUndecodableError("an image cannot be decoded", fault=fault.value)


@contextmanager
def _pydicom_silenced() -> Iterator[None]:
    """Let pydicom neither warn nor log."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
