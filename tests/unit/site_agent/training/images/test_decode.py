"""PNG and JPEG as pixels, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from site_agent.training.images.decode import decode_image
from site_agent.training.images.errors import ImageRefusedError, ImageUndecodableError

pytestmark = pytest.mark.training


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def png_by_hand(width: int, height: int, *, bit_depth: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    """A PNG made chunk by chunk, so that its header may lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_png_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(pixels), "PNG")), pixels)


def test_jpeg_is_rgb_and_near_its_pixels() -> None:
    pixels = np.full((16, 16, 3), (200, 40, 90), dtype=np.uint8)
    found = decode_image(saved(Image.fromarray(pixels), "JPEG", quality=95))
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - pixels).max() <= 4


def test_grey_has_three_equal_channels() -> None:
    found = decode_image(saved(Image.fromarray(np.array([[0, 90, 255]], dtype=np.uint8)), "PNG"))
    np.testing.assert_array_equal(found, [[[0, 0, 0], [90, 90, 90], [255, 255, 255]]])


def test_sixteen_bits_become_eight_by_scale_and_not_by_cutting() -> None:
    rows = b"\x00" + struct.pack(">HHH", 0, 0x8080, 0xFFFF)
    np.testing.assert_array_equal(decode_image(png_by_hand(3, 1, bit_depth=16, rows=rows))[0, :, 0], [0, 128, 255])


def test_palette_with_transparency_shows_its_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    found = decode_image(saved(image, "PNG", transparency=b"\x00\xff"))
    np.testing.assert_array_equal(found, [[[10, 20, 30], [40, 50, 60]]])


def test_photograph_is_turned_upright_by_its_tag() -> None:
    image = Image.fromarray(np.array([[0, 80, 160]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    found = decode_image(saved(image, "PNG", exif=exif))
    np.testing.assert_array_equal(found[:, 0, 0], [0, 80, 160])
    assert found.shape == (3, 1, 3)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(20), "kind-unknown"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(20), "damaged"),
        (saved(Image.new("RGB", (64, 64)), "JPEG")[:200], "damaged"),
        (png_by_hand(4, 4, rows=b"\x00" * 7), "damaged"),
    ],
)
def test_file_that_is_no_image_is_a_typed_failure_without_its_content(content: bytes, fault: str) -> None:
    with pytest.raises(ImageUndecodableError) as caught:
        decode_image(content)
    assert (caught.value.code, caught.value.facts) == ("image-undecodable", {"fault": fault})
    assert caught.value.__cause__ is None


def test_picture_files_have_one_frame() -> None:
    with pytest.raises(ImageUndecodableError) as caught:
        decode_image(saved(Image.new("L", (1, 1)), "PNG"), frame=1)
    assert caught.value.facts == {"fault": "no-such-frame"}


@pytest.mark.parametrize(("width", "height"), [(7_072, 7_072), (10_000, 10_000), (60_000, 60_000)])
def test_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    # A few bytes that claim 50 million pixels and more.
    with pytest.raises(ImageRefusedError) as caught:
        decode_image(png_by_hand(width, height))
    assert caught.value.facts["fault"] == "too-many-pixels"
