import numpy as np
import pytest
import torch

from systems.metrics import psnr, ssim, view_metrics


def images(h=20, w=17):
    g = torch.Generator().manual_seed(0)
    a = torch.rand(h, w, 3, generator=g)
    return a, (a + 0.1 * torch.randn(h, w, 3, generator=g)).clamp(0, 1)


def slow_ssim(a, b):
    """The definition, window by window."""
    a, b = a.double().numpy(), b.double().numpy()
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(g, g) / g.sum() ** 2
    values = []
    for c in range(a.shape[2]):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                x, y = a[i : i + 11, j : j + 11, c], b[i : i + 11, j : j + 11, c]
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy, cov = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum(), (weight * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


def test_psnr_by_hand():
    a = torch.zeros(4, 4, 3)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-5)
    assert psnr(a, a + 1) == pytest.approx(0, abs=1e-9)
    assert psnr(a, a) == 100 and psnr(a, a + 1e-7) == 100
    b, mask = a.clone(), torch.zeros(4, 4)
    b[0, 0] = 0.5
    mask[0] = 1
    assert psnr(a, b) == pytest.approx(10 * np.log10(16 / 0.25), abs=1e-5)
    assert psnr(a, b, mask) == pytest.approx(10 * np.log10(4 / 0.25), abs=1e-5)


def test_ssim_is_the_definition():
    a, b = images()
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-10)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12) and ssim(a, b) < 0.99
    flat = torch.full((11, 11, 3), 0.2)
    assert ssim(flat, flat + 0.3) == pytest.approx((2 * 0.2 * 0.5 + 1e-4) / (0.04 + 0.25 + 1e-4), abs=1e-5)


def test_view_metrics():
    a, b = images()
    assert view_metrics(a, b)["psnr_masked"] is None and view_metrics(a, b, torch.zeros(20, 17))["psnr_masked"] is None
    mask = torch.zeros(20, 17)
    mask[3:9] = 0.8
    mask[9:] = 0.4
    got = view_metrics(a, b, mask)
    assert got == {"psnr": psnr(a, b), "ssim": ssim(a, b), "psnr_masked": psnr(a[3:9], b[3:9])}


def test_refusals():
    a, b = images()
    for metric, args in (
        (psnr, (a, b[1:])),
        (ssim, (a, b[:, 1:])),
        (psnr, (a, b, torch.ones(3, 3))),
        (psnr, (a, b, torch.zeros(20, 17))),
        (ssim, (a[:8], b[:8])),
    ):
        with pytest.raises(ValueError):
            metric(*args)
