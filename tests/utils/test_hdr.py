"""Environment maps: every kind of OpenEXR file is either read or refused with its reason."""

import sys
from pathlib import Path

import numpy as np
import pytest

from utils.errors import UserError
from utils.hdr import read_light, write_hdr

LIGHTS = Path(__file__).resolve().parents[2].parent / "shared/data/lights"
PIXELS = np.random.default_rng(0).random((8, 16, 3)).astype(np.float16).astype(np.float32) + np.float32(0.25)


@pytest.fixture
def exr(tmp_path):
    """Writes channels [h, w] under a header, returns the path."""
    OpenEXR = pytest.importorskip("OpenEXR", reason="the package OpenEXR is not installed")

    def write(channels, **header):
        path = tmp_path / "map.exr"
        OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, **header}, channels).write(str(path))
        return path

    return write


def rgb(pixels=PIXELS, dtype=np.float32, extra=()):
    return {c: np.ascontiguousarray(pixels[..., i % 3], dtype) for i, c in enumerate(["R", "G", "B", *extra])}


def window(left, top, width, height):
    return np.array([left, top], np.int32), np.array([left + width - 1, top + height - 1], np.int32)


def test_half_float_and_alpha(exr):
    for dtype in (np.float16, np.float32):
        image = read_light(exr(rgb(dtype=dtype)))
        assert image.dtype == np.float32 and image.flags.c_contiguous
        assert np.array_equal(image, PIXELS.astype(dtype).astype(np.float32))
    assert np.array_equal(read_light(exr(rgb(extra=["A", "Z"]))), PIXELS)


def test_luminance_is_grey(exr):
    assert np.array_equal(read_light(exr({"Y": PIXELS[..., 0].copy()})), PIXELS[..., :1].repeat(3, -1))


def test_every_compression_without_loss(exr):
    OpenEXR = pytest.importorskip("OpenEXR")
    for kind in ("NO", "RLE", "ZIPS", "ZIP", "PIZ"):
        assert np.array_equal(read_light(exr(rgb(), compression=getattr(OpenEXR, kind + "_COMPRESSION"))), PIXELS)


def test_the_part_with_colours_is_read(tmp_path):
    OpenEXR = pytest.importorskip("OpenEXR")
    OpenEXR.File([OpenEXR.Part({"name": "depth"}, {"Z": PIXELS[..., 0].copy()}), OpenEXR.Part({"name": "beauty"}, rgb())]).write(
        str(tmp_path / "a.exr")
    )
    assert np.array_equal(read_light(tmp_path / "a.exr"), PIXELS)


@pytest.mark.parametrize("left, top", [(0, 0), (2, 3), (-2, -3), (-2, 3), (100, 0)])
def test_the_display_window_is_read(left, top, exr):
    """A data window of 16 x 8 pixels at (5 + left, -1 + top), a display window of 18 x 9 at (5, -1)."""
    path = exr(rgb(), dataWindow=window(5 + left, -1 + top, 16, 8), displayWindow=window(5, -1, 18, 9))
    expected = np.zeros((9, 18, 3), np.float32)
    for y in range(8):
        for x in range(16):
            if 0 <= y + top < 9 and 0 <= x + left < 18:
                expected[y + top, x + left] = PIXELS[y, x]
    if not expected.any():
        with pytest.raises(UserError, match="black"):
            read_light(path)
    else:
        assert np.array_equal(read_light(path), expected)


def test_a_window_that_no_memory_holds_is_refused(exr):
    """Regression: a few bytes that declare a display window of 4 thousand million pixels took 50 GB."""
    path = exr(rgb(), dataWindow=window(0, 0, 16, 8), displayWindow=window(0, 0, 65536, 65535))
    with pytest.raises(UserError, match="65536 x 65535 pixels, expected at most 128 million"):
        read_light(path)


def test_values_are_finite_and_not_negative(exr):
    pixels = PIXELS.copy()
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = np.nan, np.inf, -1
    image = read_light(exr(rgb(pixels)))
    assert (image[0, 0] == 0).all() and (image[0, 1] == 6e4).all() and (image[0, 2] == 0).all()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"Z": PIXELS[..., 0].copy()}, "has the channels Z, expected R, G, B"),
        ({"diffuse." + c: p for c, p in rgb().items()}, r"has the channels diffuse\.B, diffuse\.G, diffuse\.R"),
        ({"R": PIXELS[..., 0].copy(), "G": PIXELS[..., 1].copy()}, "has the channels G, R"),
        ({c: PIXELS[..., 0].copy() for c in ("Y", "RY", "BY")}, "has the channels BY, RY, Y"),
        ({c: (100 * p).astype(np.uint32) for c, p in rgb().items()}, "pixels of type uint32, expected half or float"),
        (rgb(0 * PIXELS), "black"),
    ],
)
def test_other_contents_are_refused(channels, message, exr):
    with pytest.raises(UserError, match=message):
        read_light(exr(channels))


def test_a_cube_map_is_refused(exr):
    OpenEXR = pytest.importorskip("OpenEXR")
    with pytest.raises(UserError, match="cube map"):
        read_light(exr(rgb(), envmap=OpenEXR.ENVMAP_CUBE))
    assert read_light(exr(rgb(), envmap=OpenEXR.ENVMAP_LATLONG)).shape == (8, 16, 3)


@pytest.mark.parametrize("keep", [8, 40, 200, 0.4, 0.7, 0.99])
def test_a_truncated_file_is_refused(keep, exr):
    path = exr(rgb(np.random.default_rng(1).random((64, 128, 3))))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="truncated or unreadable"):
        read_light(path)


def test_a_damaged_file_is_refused(exr):
    path = exr(rgb(np.random.default_rng(1).random((64, 128, 3))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or unreadable"):
        read_light(path)


def test_without_the_package_the_next_step_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    (tmp_path / "a.exr").write_bytes(b"v/1\x01\x02\0\0\0")
    with pytest.raises(UserError, match="pip install OpenEXR"):
        read_light(tmp_path / "a.exr")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"", "neither"), (b"GIF89a", "neither"), (b"#?RADIANCE\n", "truncated")]
)
def test_other_files_are_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.hdr").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_light(tmp_path / "a.hdr")


def test_radiance_round_trip(tmp_path):
    write_hdr(tmp_path / "new/a.hdr", PIXELS)
    image = read_light(tmp_path / "new/a.hdr")
    assert np.abs(image - PIXELS).max() < 0.01 * PIXELS.max()  # a shared exponent, 8 bits each


@pytest.mark.skipif(not LIGHTS.is_dir(), reason="../shared with the environment maps is not here")
def test_photographed_maps():
    pytest.importorskip("OpenEXR", reason="the package OpenEXR is not installed")
    for path in sorted(LIGHTS.glob("*.exr")):
        image = read_light(path)
        assert image.shape == (512, 1024, 3) and image.max() > 1000 and 0.1 < image.mean() < 1.5
