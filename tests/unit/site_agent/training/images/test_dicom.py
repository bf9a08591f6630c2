"""DICOM frames against pydicom's own rendering of its sample files, and against the standard's equations by hand."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from site_agent.training.images import dicom
from site_agent.training.images.decode import decode_image
from site_agent.training.images.dicom import windowed
from site_agent.training.images.errors import ImageRefusedError, ImageUndecodableError
from site_agent.training.images.limits import MAX_PIXELS

pytestmark = pytest.mark.training

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


DEFLATED = (SAMPLES / "image_dfl.dcm").read_bytes()


def dicom_bytes(stored: np.ndarray, **tags: object) -> bytes:
    """A grey DICOM file of uint16 or int16 values, one frame or (frames, rows, columns)."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.PatientName = "Xylophone^4711"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        dataset.NumberOfFrames = stored.shape[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(stored.dtype == np.int16)
    dataset.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    target = io.BytesIO()
    dataset.save_as(target, enforce_file_format=True)
    return target.getvalue()


def with_odd_rows(content: bytes) -> bytes:
    """The same file, whose number of rows takes three bytes, where a whole number of pairs is due."""
    head = b"\x28\x00\x10\x00US"
    place = content.index(head) + len(head)
    return content[:place] + b"\x03\x00" + content[place + 2 : place + 4] + b"\x00" + content[place + 4 :]


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "examples_overlay.dcm"])
def test_window_of_a_real_file_equals_that_of_pydicom(name: str) -> None:
    dataset = pydicom.dcmread(SAMPLES / name)
    measured = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(measured, dataset)
    # pydicom keeps the range of the stored values; its ends are 0 and 255 here.
    low, high = (-(2**15), 2**15 - 1) if dataset.PixelRepresentation else (0, 2**dataset.BitsStored - 1)
    expected = np.rint((shown - low) / (high - low) * 255)
    found = decode_image((SAMPLES / name).read_bytes())
    assert found.shape == (*expected.shape, 3)
    assert np.abs(found[:, :, 0] - expected).max() <= 1
    assert (found[:, :, 0] == found[:, :, 2]).all()


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "SC_rgb_rle.dcm", "SC_ybr_full_422_uncompressed.dcm"])
def test_colours_of_a_real_file_equal_those_of_pydicom(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.pixels.pixel_array(SAMPLES / name)
    np.testing.assert_array_equal(decode_image((SAMPLES / name).read_bytes()), expected)


def test_linear_window_is_the_equation_of_the_standard() -> None:
    # PS3.3 C.11.2.1.2.1, with c = 2048 and w = 4096: 0 is black, 4095 is white; with c = 10, w = 5 by hand.
    values = np.array([0.0, 4095.0, 2047.5])
    np.testing.assert_allclose(windowed(values, center=2048, width=4096, function="LINEAR"), [0, 1, 0.5])
    values = np.array([7.0, 7.5, 8.5, 9.5, 10.5, 11.5, 12.0])
    np.testing.assert_allclose(
        windowed(values, center=10, width=5, function="LINEAR"), [0, 0, 0.25, 0.5, 0.75, 1.0, 1.0]
    )
    np.testing.assert_allclose(
        windowed(np.array([9.5, 9.6]), center=10, width=1, function="LINEAR"), [0, 1]
    )  # a step behind c - 0.5


def test_exact_and_sigmoid_windows_are_the_equations_of_the_standard() -> None:
    values = np.array([5.0, 10.0, 15.0, 20.0])
    np.testing.assert_allclose(windowed(values, center=10, width=10, function="LINEAR_EXACT"), [0, 0.5, 1, 1])
    np.testing.assert_allclose(
        windowed(values, center=10, width=10, function="SIGMOID"), 1 / (1 + np.exp(-4 * (values - 10) / 10))
    )


def test_rescaled_values_are_windowed_by_the_first_window() -> None:
    # Stored 0..300 are Hounsfield units from -1024; the first of two windows is c = -874, w = 301: black to white.
    stored = np.array([[0, 150, 300]], dtype=np.uint16)
    content = dicom_bytes(
        stored, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter=[-873.5, 40], WindowWidth=[301, 400]
    )
    np.testing.assert_array_equal(decode_image(content)[0, :, 0], [0, 128, 255])


def test_monochrome1_is_the_inverse_of_monochrome2() -> None:
    stored = np.array([[0, 100, 200, 1000]], dtype=np.int16)
    upright = decode_image(dicom_bytes(stored))
    inverse = decode_image(dicom_bytes(stored, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(upright[0, :, 0], [0, 26, 51, 255])
    np.testing.assert_array_equal(inverse[0, :, 0], [255, 230, 204, 0])


def test_padding_does_not_count_where_there_is_no_window() -> None:
    stored = np.array([[-2000, 0, 50, 100]], dtype=np.int16)
    content = dicom_bytes(stored, PixelPaddingValue=-2000)
    np.testing.assert_array_equal(decode_image(content)[0, :, 0], [0, 0, 128, 255])


def test_one_value_everywhere_is_black() -> None:
    assert decode_image(dicom_bytes(np.full((2, 2), 7, dtype=np.uint16))).max() == 0


def test_each_frame_is_its_own_image() -> None:
    stored = np.array([[[0, 10]], [[10, 0]]], dtype=np.uint16)
    content = dicom_bytes(stored)
    np.testing.assert_array_equal(decode_image(content, frame=0)[0, :, 0], [0, 255])
    np.testing.assert_array_equal(decode_image(content, frame=1)[0, :, 0], [255, 0])
    with pytest.raises(ImageUndecodableError) as caught:
        decode_image(content, frame=2)
    assert caught.value.facts == {"fault": "no-such-frame"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ((SAMPLES / "rtplan.dcm").read_bytes(), "no-pixels"),
        ((SAMPLES / "MR_truncated.dcm").read_bytes(), "damaged"),
        (DEFLATED[:-2000], "damaged"),
        (DEFLATED[:400] + b"\xff" * 50 + DEFLATED[450:], "damaged"),
        (with_odd_rows(dicom_bytes(np.zeros((1, 2), np.uint16))), "damaged"),
        ((SAMPLES / "JPEGLSNearLossless_08.dcm").read_bytes(), "compression-unknown"),
        (dicom_bytes(np.zeros((1, 2), np.uint16), WindowCenter=1, WindowWidth=0), "window-unusable"),
        (
            dicom_bytes(np.zeros((1, 2), np.uint16), WindowCenter=1, WindowWidth=2, VOILUTFunction="X"),
            "window-unusable",
        ),
        (dicom_bytes(np.zeros((1, 2), np.uint16), PhotometricInterpretation="CMYK"), "photometry-unknown"),
    ],
)
def test_file_that_cannot_be_shown_is_a_typed_failure(
    content: bytes, fault: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(ImageUndecodableError) as caught:
        decode_image(content)
    assert caught.value.facts == {"fault": fault}
    # Neither a log line nor a warning may carry a value of the file.
    assert not caplog.records
    assert not recwarn.list
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_deflated_file_is_shown_and_one_that_unfolds_too_far_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode_image(DEFLATED).shape == (512, 512, 3)
    # A kilobyte of deflate holds a megabyte of zeros; here the bound is small instead.
    monkeypatch.setattr(dicom, "MAX_IMAGE_BYTES", 100_000)
    with pytest.raises(ImageRefusedError) as caught:
        decode_image(DEFLATED)
    assert caught.value.facts == {"fault": "file-too-large"}


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    content = bytearray(dicom_bytes(np.zeros((1, 2), np.uint16)))
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.Rows, dataset.Columns = 65_535, 65_535
    target = io.BytesIO()
    dataset.save_as(target)
    with pytest.raises(ImageRefusedError) as caught:
        decode_image(target.getvalue())
    assert caught.value.facts == {"fault": "too-many-pixels", "most_pixels": MAX_PIXELS}
