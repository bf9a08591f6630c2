"""An image's bytes as pixels: PNG and JPEG here, DICOM in its own room. What kind it is, its first bytes say.

Safety: files come from a hospital's systems and may be broken or hostile. A file's size, and the number of its pixels
as its header says, are bounded before anything is decoded; the decoder is told which two formats to try.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from site_agent.training.images.dicom import decode_dicom
from site_agent.training.images.errors import ImageFault, ImageRefusedError, ImageUndecodableError
from site_agent.training.images.limits import MAX_PIXELS

PixelArray = NDArray[np.uint8]

_DICOM_MARK = b"DICM"
_DICOM_MARK_AT = 128
_KINDS = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L"})


def decode_image(content: bytes, *, frame: int = 0) -> PixelArray:
    """Decode one image.

    Args:
        content: the file's bytes.
        frame: which frame; only DICOM has others than 0.

    Returns:
        uint8, shape (height, width, 3), RGB; a grey image has three equal channels.

    Raises:
        ImageRefusedError: it has too many pixels.
        ImageUndecodableError: it is empty, of no known kind, damaged, or has no such frame.
    """
    if not content:
        raise undecodable(ImageFault.EMPTY)
    if content[_DICOM_MARK_AT : _DICOM_MARK_AT + len(_DICOM_MARK)] == _DICOM_MARK:
        return decode_dicom(content, frame=frame)
    kind = next((kind for mark, kind in _KINDS.items() if content.startswith(mark)), None)
    if kind is None:
        raise undecodable(ImageFault.KIND_UNKNOWN)
    if frame != 0:
        raise undecodable(ImageFault.NO_SUCH_FRAME)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(io.BytesIO(content), formats=(kind,)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise too_many_pixels()
                return _rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise too_many_pixels() from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError):
        # Pillow's own sentence may quote the file.
        raise undecodable(ImageFault.DAMAGED) from None


def undecodable(fault: ImageFault) -> ImageUndecodableError:
    """The error of a file that is no image that can be used."""
    return ImageUndecodableError("an image cannot be decoded", fault=fault.value)


def too_many_pixels() -> ImageRefusedError:
    """The error of an image that would need too much memory."""
    message = "an image has more pixels than this trainer opens"
    return ImageRefusedError(message, fault=ImageFault.TOO_MANY_PIXELS.value, most_pixels=MAX_PIXELS)


def _rgb(image: Image.Image) -> PixelArray:
    """Upright, eight bits, three channels. Transparent pixels show their own colour."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT_MODES:
        # Sixteen bits become eight by their upper half; Pillow's own conversion would cut at 255.
        grey = (np.asarray(upright).astype(np.int64).clip(0, 65_535) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert("RGB"), dtype=np.uint8)
