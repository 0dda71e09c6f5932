"""A network in an ONNX file: size and normalisation of its input, its output as a probability, and files that are none."""

import numpy as np
import pytest

from process_data.onnx_mask import MaskNetwork, input_shape
from tests.process_data.onnx_file import field, value, write_onnx
from utils.errors import UserError


@pytest.fixture
def halves() -> np.ndarray:
    """Left half red, right half blue."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24, 0], image[:, 24:, 2] = 255, 255
    return image


def test_the_input_size_is_read_from_the_file(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", [1, 0, 0], 0, size=(24, 40))
    assert input_shape(path.read_bytes()) == [1, 3, 24, 40] and MaskNetwork(path).size == (40, 24)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_network_that_knows_red(halves, tmp_path, sigmoid):
    p = MaskNetwork(write_onnx(tmp_path / "m.onnx", [20, 0, -20], 0, sigmoid=sigmoid), "unit")(halves)
    assert p.shape == (32, 48) and p[:, :20].min() > 0.99 and p[:, 28:].max() < 0.01


def test_normalisation(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", [1, 0, 0], 0)
    grey = np.full((16, 16, 3), 124, np.uint8)  # ImageNet's mean red
    assert MaskNetwork(path, "imagenet")(grey).mean() == pytest.approx(0.5, abs=0.01)
    assert MaskNetwork(path, "unit")(grey).mean() == pytest.approx(1 / (1 + np.exp(-124 / 255)), abs=1e-3)


def test_files_that_are_no_such_network(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(UserError, match="no such file"):
        MaskNetwork(path)
    for data in (b"hello, this is text", b"", b"\xff" * 40, write_onnx(path, [1, 0, 0], 0).read_bytes()[:60]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a readable ONNX file"):
            MaskNetwork(path)
    path.write_bytes(field(7, field(11, value("a", [1, 3, 8, 8])) + field(11, value("b", [1, 3, 8, 8]))))
    with pytest.raises(UserError, match="2 inputs, expected one image"):
        MaskNetwork(path)
    path.write_bytes(field(7, field(11, value("a", [1, 1, 8, 8]))))
    with pytest.raises(UserError, match=r"input of shape \[1, 1, 8, 8\], expected"):
        MaskNetwork(path)
    path.write_bytes(field(7, field(11, value("a", [1, 3, 8, 8]))))
    with pytest.raises(UserError, match="cannot be run"):
        MaskNetwork(path)
    with pytest.raises(UserError, match=r"output of shape \[1, 2, 16, 16\], expected one mask"):
        MaskNetwork(write_onnx(path, [1, 0, 0, 0, 1, 0], 0, channels=2))
