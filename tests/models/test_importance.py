"""Hierarchical sampling finds the surface of a sphere and packs what it found."""

import pytest
import torch

from confs.model import SamplingConfig
from models.importance import HierarchicalSampler, crossing_weights, pack_dense
from utils.rays import Rays


def sphere(x):
    return x.norm(dim=-1) - 0.5


def rays():
    o = torch.tensor([[0.0, 0, -3], [0.1, 0.2, -3], [5.0, 0, -3]])
    d = torch.tensor([[0.0, 0, 1]]).expand(3, -1)
    return Rays(o, d, torch.tensor([2.0, 2.1, 1.0]), torch.tensor([4.0, 3.9, 0.0]))


@pytest.mark.parametrize("jitter", [None, torch.tensor([0.1, 0.9, 0.5])])
def test_samples_gather_at_the_surface(jitter):
    samples, _ = HierarchicalSampler(SamplingConfig(n_samples=32, n_importance=64, rounds=4)).sample(rays(), 0.1, jitter, sphere)
    assert samples.offsets.tolist() == [0, 96, 192, 192]
    assert (samples.t_ends >= samples.t_starts).all()
    hit = 3 - 0.5
    near = (samples.t_mid[:96] - hit).abs() < 0.1
    assert near.sum() > 50
    assert torch.equal(samples.t_ends[:95], samples.t_starts[1:96])  # no gap, no overlap


def test_weights_find_a_plane():
    t = torch.linspace(0, 1, 33)[None]
    weights = crossing_weights(t, 0.4 - t, 256.0)
    middle = (weights * (t[:, 1:] + t[:, :-1]) / 2).sum() / weights.sum()
    assert float(middle) == pytest.approx(0.4, abs=0.02) and float(weights.sum()) == pytest.approx(1, abs=0.02)
    assert float(crossing_weights(t, 0.4 + t, 256.0).sum()) < 0.05  # never crossed


def test_rays_that_all_miss():
    r = rays()
    samples, _ = HierarchicalSampler(SamplingConfig(n_samples=8, n_importance=8, rounds=2)).sample(r[[2]], 0.1, None, sphere)
    assert len(samples) == 0 and samples.n_rays == 1
    assert len(pack_dense(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long), 4)) == 0
