import hashlib

import numpy as np
import pytest
import torch

from systems import lpips as module
from systems.lpips import ALEXNET, CHANNELS, LAYERS, LINEAR, SCALE, SHIFT, Lpips, Unavailable, load_lpips

SIZES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))

PUBLISHED = 0.2496166


def weights(fill=torch.zeros):
    """(AlexNet's state, the linear one); by default all 0."""
    alexnet = {f"features.{k}.weight": fill(o, i, s, s) for (k, _, _), (o, i, s) in zip(LAYERS, SIZES)}
    alexnet |= {f"features.{k}.bias": fill(o) for (k, _, _), (o, _, _) in zip(LAYERS, SIZES)}
    return alexnet, {f"lin{i}.model.1.weight": fill(1, n, 1, 1) for i, n in enumerate(CHANNELS)}


def by_hand():
    """The first layer gives the scaled red of a pixel and 1; the other layers give 0. Their weights: 2 and 3."""
    alexnet, linear = weights()
    alexnet["features.0.weight"][0, 0, 5, 5] = 1
    alexnet["features.0.bias"][1] = 1
    linear["lin0.model.1.weight"][0, :2, 0, 0] = torch.tensor([2.0, 3.0])
    return Lpips(alexnet, linear)


def feature(red):
    r = max((2 * red - 1 - SHIFT[0]) / SCALE[0], 0)
    return np.array([r, 1]) / np.hypot(r, 1)


def test_flat_pictures_by_hand():
    a, b = torch.full((40, 50, 3), 0.9), torch.full((40, 50, 3), 0.6)
    expected = np.square(feature(0.9) - feature(0.6)) @ [2, 3]
    assert by_hand()(a, b) == pytest.approx(expected, rel=1e-5) and by_hand()(a, a) == 0
    half = a.clone()
    half[:, :26] = 0.6  # columns of samples at 3, 7, ...: 6 of 12
    assert by_hand()(a, half) == pytest.approx(expected / 2, rel=0.1)
    mask = torch.zeros(40, 50)
    mask[:, :16] = 1
    assert by_hand()(a, half, mask) == pytest.approx(expected, rel=1e-5)
    assert by_hand()(a, half, torch.zeros(40, 50)) is None
    assert by_hand()(a[:31], a[:31]) is None  # too small for AlexNet
    with pytest.raises(ValueError, match="differ"):
        by_hand()(a, b[1:])


def test_all_layers_take_part():
    generator = torch.Generator().manual_seed(0)
    states = weights(lambda *shape: torch.randn(*shape, generator=generator) * 0.1)
    states = states[0], {key: value.abs() for key, value in states[1].items()}
    a, b = torch.rand(64, 70, 3, generator=generator), torch.rand(64, 70, 3, generator=generator)
    whole = Lpips(*states)(a, b)
    assert whole > 0
    for i in range(5):
        less = {**states[1], f"lin{i}.model.1.weight": torch.zeros(1, CHANNELS[i], 1, 1)}
        assert Lpips(states[0], less)(a, b) < whole
    assert Lpips(*states)(a, b, torch.ones(64, 70)) == pytest.approx(whole, rel=0.2)


def wave(*shape, pace=0.37):
    return torch.cos(torch.arange(int(np.prod(shape)), dtype=torch.float64) * pace).view(*shape).float() * 0.1


def test_the_value_of_the_published_code():
    """Of the module in torchmetrics 1.9.0 (net="alex"), with these weights and pictures."""
    alexnet, linear = weights(wave)
    linear = {key: value.abs() for key, value in linear.items()}
    a, b = (0.5 + 4 * wave(70, 90, 3, pace=pace) for pace in (0.011, 0.012))
    assert Lpips(alexnet, linear)(a, b) == pytest.approx(PUBLISHED, rel=1e-4)


def test_weights_are_looked_for_and_never_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ())
    with pytest.raises(Unavailable, match=rf"{ALEXNET} and lpips' .*{LINEAR}.* into {tmp_path}"):
        load_lpips(folder=tmp_path)
    alexnet, linear = weights()
    torch.save(alexnet, tmp_path / ALEXNET)
    with pytest.raises(Unavailable, match=f"put lpips' .*{LINEAR}"):
        load_lpips(folder=tmp_path)
    torch.save(linear, tmp_path / LINEAR)
    with pytest.raises(Unavailable, match="damaged or another file"):
        load_lpips(folder=tmp_path)
    monkeypatch.setattr(module, "DIGEST", hashlib.sha256((tmp_path / ALEXNET).read_bytes()).hexdigest()[:8])
    picture = torch.rand(40, 40, 3)
    assert load_lpips(folder=tmp_path)(picture, picture) == 0
    torch.save({"conv": torch.zeros(1)}, tmp_path / LINEAR)
    with pytest.raises(Unavailable, match="another network"):
        load_lpips(folder=tmp_path)
