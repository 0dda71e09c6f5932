"""Image metrics. Images are [H, W, 3] in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_PSNR = 100.0  # dB, of identical images


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"images differ in shape: {list(a.shape)} and {list(b.shape)}")


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """-10 log10(mean squared error) in dB, at most 100; over the pixels where mask [H, W] > 0.5 when there is one."""
    _same_shape(a, b)
    error = (a.double() - b.double()).square()
    if mask is not None:
        if mask.shape != a.shape[:2]:
            raise ValueError(f"mask {list(mask.shape)} does not fit an image {list(a.shape)}")
        error = error[mask > 0.5]
    if error.numel() == 0:
        raise ValueError("psnr: no pixel to compare (the mask is empty)")
    mse = error.mean()
    return MAX_PSNR if mse <= 10 ** (-MAX_PSNR / 10) else float(-10 * torch.log10(mse))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over channels and over the pixels whose window lies inside the image.

    Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03, data range 1, weighted (biased) covariances: what
    skimage gives with gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1.
    """
    _same_shape(a, b)
    if a.ndim != 3 or min(a.shape[:2]) < 11:
        raise ValueError(f"ssim: expected [H, W, C] of at least 11 x 11 pixels, got {list(a.shape)}")
    x, y = a.double().permute(2, 0, 1)[:, None], b.double().permute(2, 0, 1)[:, None]  # [C, 1, H, W]
    g = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64, device=a.device) / 1.5) ** 2)
    g = g / g.sum()

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, g.view(1, 1, -1, 1)), g.view(1, 1, 1, -1))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


def view_metrics(pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float | None]:
    """psnr, ssim over the whole image and psnr_masked where mask [H, W] > 0.5 (None without a mask or with an empty one)."""
    masked = None if mask is None or not bool((mask > 0.5).any()) else psnr(pred, truth, mask)
    return {"psnr": psnr(pred, truth), "ssim": ssim(pred, truth), "psnr_masked": masked}
