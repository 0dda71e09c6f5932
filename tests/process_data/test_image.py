"""Images in and out."""

import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from utils.errors import UserError
from utils.image import (
    MAX_PIXELS,
    as_rgb,
    depth_to_rgb,
    image_size,
    normal_to_rgb,
    read_raster,
    read_rgb,
    resize,
    sheet,
    to_uint8,
    write_png,
)


def test_png_round_trip(tmp_path):
    image = torch.rand(5, 7, 3)
    write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_allclose(read_rgb(tmp_path / "new" / "a.png") / 255, image.numpy(), atol=0.5 / 255 + 1e-6)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_unwritable_and_absent_paths(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match="cannot be read"):
        read_rgb(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_every_truncation_is_seen(tmp_path, suffix, share):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert read_rgb(path).shape == (40, 50, 3)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="truncated or unreadable"):
        read_rgb(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_sizes_and_pixels_of_every_format(tmp_path, suffix):
    image = np.kron(np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), image[..., ::-1])
    assert image_size(path) == (40, 32)
    assert np.abs(read_raster(path).astype(int) - image).mean() < (12 if suffix in (".jpg", ".webp") else 1e-9)


def test_a_jpeg_with_large_app_segments(tmp_path):
    """More than a mebibyte before the frame header: maker notes, multi-picture and depth data."""
    data = cv2.imencode(".jpg", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe9" + (60_000).to_bytes(2, "big") + bytes(59_998)
    (tmp_path / "a.jpg").write_bytes(data[:2] + 20 * segment + data[2:])
    assert image_size(tmp_path / "a.jpg") == (40, 30) and read_rgb(tmp_path / "a.jpg").shape == (30, 40, 3)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore")
def test_the_limit_of_pixels(tmp_path, monkeypatch):
    """200 megapixels are read; an image that would decode to gigabytes is refused by its header."""
    path = tmp_path / "a.png"
    path.write_bytes(png_header(16320, 12240))
    assert image_size(path) == (16320, 12240) and MAX_PIXELS > 16320 * 12240
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for width, height in ((20_000, 20_000), (60_000, 60_000), (70_000, 10), (0, 5)):
        path.write_bytes(png_header(width, height))
        for read in (image_size, read_raster):
            with pytest.raises(UserError, match="megapixels|truncated or unreadable"):
                read(path)


def test_resize_is_exact_on_a_ramp():
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 4, 0)  # value 2u
    for width in (30, 60, 240):
        f = width / 120
        u = (np.arange(width) - (f - 1) / 2) / f
        inner = slice(2, -2)
        np.testing.assert_allclose(resize(ramp, width, 4)[1, inner, 0], 2 * u[inner], atol=0.51)


def test_colour_maps_and_sheet():
    depth, opacity = np.array([[1.0, 2.0, 0.0]]), np.array([[1.0, 1.0, 0.0]])
    near, far, nothing = depth_to_rgb(depth, torch.tensor(opacity))[0].astype(int)
    assert near[0] > near[2] and far[2] > far[0] and (nothing == 0).all()
    assert (depth_to_rgb(np.zeros((2, 2)), np.zeros((2, 2))) == 0).all()
    np.testing.assert_array_equal(normal_to_rgb(np.array([[[0, 0, 0.2], [0.0, 0, 0]]]), opacity[:, :2])[0, 0], [128, 128, 255])
    tiles = sheet([np.zeros((4, 3, 3), np.uint8), torch.ones(6, 5), np.ones((2, 2, 1))], ["a", "b", "c"])
    assert tiles.shape == (6, 10, 3) and tiles.dtype == np.uint8
    assert (to_uint8(np.array([[np.nan, -1.0, 2.0]]))[0, :, 0] == [0, 0, 255]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, channels):
    """As the area average of the whole, in the same place; the EXIF orientation is not applied."""
    path, exif = tmp_path / "a.jpg", PIL.Image.Exif()
    exif[0x0112] = 6
    v, u = np.mgrid[:96, :128]
    pixels = np.stack([u + 40, 2 * v, 100 + 60 * np.sin(u / 9) * np.cos(v / 7)], -1).astype(np.uint8)[..., :channels]
    PIL.Image.fromarray(pixels.squeeze()).save(path, quality=97, exif=exif)
    whole = as_rgb(read_raster(path))
    for factor in (1, 2, 4, 8):
        part = as_rgb(read_raster(path, factor))
        assert part.shape == (96 // factor, 128 // factor, 3)
        assert np.abs(part.astype(float) - resize(whole, 128 // factor, 96 // factor)).mean() < 1.0
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match="truncated"):
        read_raster(path, 2)
