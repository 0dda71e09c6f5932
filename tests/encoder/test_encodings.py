import math

import pytest
import torch

from encoder.frequency import Frequency
from encoder.get_encoding import ENCODINGS, get_encoding
from encoder.spherical import spherical_harmonics


def test_spherical_harmonics_are_orthonormal():
    """Over the sphere the mean of Y_i Y_j is 1 / (4 pi) for i = j, else 0."""
    n = 200_000
    dirs = torch.nn.functional.normalize(torch.randn(n, 3, dtype=torch.float64), dim=1)
    y = spherical_harmonics(dirs, 5)
    gram = y.T @ y / n * 4 * math.pi
    assert torch.allclose(gram, torch.eye(25, dtype=torch.float64), atol=0.03)


def test_bands_have_their_sizes():
    for degree in range(1, 6):
        assert get_encoding("spherical", degree=degree)(torch.randn(4, 3)).shape == (4, degree**2)


def test_frequency_hand_numbers():
    y = Frequency(1, 2)(torch.tensor([[0.5]]))
    want = [0.5, math.sin(0.5), math.sin(1.0), math.cos(0.5), math.cos(1.0)]
    assert torch.allclose(y, torch.tensor([want]))


def test_unknown_encoding_names_the_known():
    with pytest.raises(ValueError, match="hashgrid"):
        get_encoding("hashgird")
    assert {"hashgrid", "frequency", "spherical"} <= set(ENCODINGS)
