import numpy as np
import pytest
import torch

from systems.metrics import colour_corrected, psnr, ssim, view_metrics


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
    assert {k: got[k] for k in ("psnr", "ssim", "psnr_masked")} == {
        "psnr": psnr(a, b), "ssim": ssim(a, b), "psnr_masked": psnr(a[3:9], b[3:9])
    }  # fmt: skip
    assert got["psnr_cc"] >= got["psnr"] and got["psnr_cc_masked"] >= got["psnr_masked"]


def test_ssim_inside_the_mask():
    a, b = images(30, 40)
    b[:, :20] = a[:, :20]
    mask = torch.zeros(30, 40)
    mask[:, :14] = 1
    assert view_metrics(a, b, mask)["ssim_masked"] == pytest.approx(1) and view_metrics(a, b, mask)["ssim"] < 0.99
    mask = torch.zeros(30, 40)
    mask[5, 25] = 1  # one window: that of the 11 x 11 pixels around it
    assert view_metrics(a, b, mask)["ssim_masked"] == pytest.approx(ssim(a[:11, 20:31], b[:11, 20:31]), abs=1e-12)
    mask = torch.zeros(30, 40)
    mask[:3] = 1  # no window lies inside the picture
    assert view_metrics(a, b, mask)["ssim_masked"] is None and view_metrics(a, b)["ssim_masked"] is None


def test_colour_correction_removes_exposure_and_white_balance():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 50, 3, generator=generator) * 0.8 + 0.1
    pred = (truth.clamp(min=0) ** 1.1) * torch.tensor([0.7, 0.8, 0.75])
    assert psnr(pred, truth) < 17
    assert psnr(colour_corrected(pred, truth), truth) > 45
    noise = truth + torch.randn(truth.shape, generator=generator) * 0.05
    assert psnr(colour_corrected(noise, truth), truth) < psnr(noise, truth) + 0.5  # noise is no exposure


def test_colour_correction_of_cut_out_pictures_leaves_the_background_alone():
    truth = torch.zeros(40, 50, 3)
    truth[10:30] = torch.rand(20, 50, 3, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.2
    mask = (truth > 0).float()[..., 0]
    got = view_metrics(truth * 0.6, truth, mask, cut_out=True)
    assert got["psnr"] < 20 < 40 < got["psnr_cc"]


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
