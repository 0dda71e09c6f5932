"""Exposure and white balance of photographs."""

import torch

from models.appearance import Appearance
from models.radiance import RadianceNetwork


def test_the_mean_photograph_is_rendered_unchanged():
    a = Appearance("affine", 4, [1, 2, 3])
    with torch.no_grad():
        a.values.normal_()
    assert a.centred()[1:].sum(0).abs().max() < 1e-6
    rgb = torch.rand(5, 3)
    assert torch.equal(a.photographed(rgb, 1.0, torch.zeros(5, dtype=torch.long)), rgb)  # view 0 is held out


def test_an_exposure_is_learned():
    """Two photographs of one scene, the second with half the light and a warmer white: the affine maps explain the difference."""
    colours = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    truth = [colours * torch.tensor([1.2, 1.1, 1.0]) + 0.02, colours * torch.tensor([0.8, 0.9, 1.0]) - 0.02]
    a = Appearance("affine", 2, [0, 1])
    optimizer = torch.optim.Adam(a.parameters(), lr=0.01)
    for _ in range(400):
        loss = sum((a.photographed(colours, 1.0, torch.full((200,), k)) - truth[k]).square().mean() for k in range(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 1e-5


def test_a_constant_background_is_not_photographed():
    """Of a pixel that the object covers by a third, a third is changed."""
    a = Appearance("affine", 2, [0, 1])
    with torch.no_grad():
        a.values[0, 9:] = 0.2
        a.values[0, 0] = 0.5
    third = torch.full((1,), 1 / 3)
    whole = a.photographed(torch.ones(1, 3), torch.ones(1), torch.zeros(1, dtype=torch.long))
    assert torch.allclose(a.photographed(torch.ones(1, 3) / 3, third, torch.zeros(1, dtype=torch.long)), whole / 3)


def test_an_embedding_enters_the_colour_network():
    net = RadianceNetwork(4, None, hidden=8, layers=1, use_normal=False, n_embedding=3)
    dirs = torch.randn(6, 3)
    plain = net.encode_dirs(dirs)
    assert plain.shape == (6, 3) and not plain.any()
    given = net.encode_dirs(dirs, torch.ones(6, 3))
    feature = torch.randn(6, 4)
    assert not torch.allclose(net(feature, None, plain), net(feature, None, given))
    a = Appearance("embedding", 5, range(5), 3)
    assert a.embedding(torch.tensor([0, 4])).shape == (2, 3) and Appearance("affine", 5, range(5)).embedding(torch.tensor([0])) is None
