"""Images in and out."""

import cv2
import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.image import depth_to_rgb, normal_to_rgb, read_rgb, resize, sheet, to_uint8, write_png


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


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 12))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_every_truncation_is_seen(tmp_path, suffix, share):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    data = cv2.imencode(suffix, image)[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert read_rgb(path).shape == (40, 50, 3)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="truncated or unreadable"):
        read_rgb(path)


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
