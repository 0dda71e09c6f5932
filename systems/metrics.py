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


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each pixel whose window lies inside the image, mean over channels -> [H - 10, W - 10].

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
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean((0, 1))


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean of `ssim_map`."""
    return float(ssim_map(a, b).mean())


def colour_corrected(pred: Tensor, truth: Tensor, mask: Tensor | None = None, rounds: int = 5) -> Tensor:
    """pred [H, W, 3] after the least-squares fit of its colours to truth, by the terms r, g, b, their products and 1, clipped to [0, 1].

    Where photographs differ in exposure and white balance, PSNR after this fit (psnr_cc) judges what does not depend on them (RawNeRF,
    Mildenhall et al., 2022). Pixels near 0 or 1 in either image are left out of the fit, which is repeated `rounds` times. mask [H, W]:
    fit where it exceeds 0.5.
    """
    _same_shape(pred, truth)
    used = torch.ones(pred.shape[:2], dtype=torch.bool, device=pred.device) if mask is None else mask > 0.5
    now, target, low, high = pred.double(), truth.double(), 0.5 / 255, 1 - 0.5 / 255
    for _ in range(rounds):
        r, g, b = now.unbind(-1)
        terms = torch.stack([r, g, b, r * r, r * g, r * b, g * g, g * b, b * b, torch.ones_like(r)], -1)
        columns = []
        for c in range(3):
            clear = used & (now[..., c] > low) & (now[..., c] < high) & (target[..., c] > low) & (target[..., c] < high)
            if int(clear.sum()) < 100:
                columns.append(now[..., c])
                continue
            a, y = terms[clear], target[..., c][clear] - now[..., c][clear]
            ridge = 1e-6 * len(a) * torch.eye(10, dtype=a.dtype, device=a.device)
            columns.append(now[..., c] + terms @ torch.linalg.solve(a.T @ a + ridge, a.T @ y))
        now = torch.stack(columns, -1).clamp(0, 1)
    return now.to(pred.dtype)


def view_metrics(pred: Tensor, truth: Tensor, mask: Tensor | None = None, cut_out: bool = False) -> dict[str, float | None]:
    """psnr, ssim over the whole image; psnr_masked, ssim_masked where mask [H, W] > 0.5 (None without a mask or with an empty one).

    psnr_cc, psnr_cc_masked: the same after `colour_corrected` over the whole image (cut_out: inside the mask alone, the rest is a
    constant background), and inside the mask.
    """
    similar = ssim_map(pred, truth)
    found: dict[str, float | None] = {"psnr": psnr(pred, truth), "ssim": float(similar.mean()), "psnr_masked": None, "psnr_cc_masked": None}
    inner = None if mask is None else mask[5:-5, 5:-5].to(similar.device) > 0.5  # the pixels of the map
    found["ssim_masked"] = None if inner is None or not bool(inner.any()) else float(similar[inner].mean())
    corrected = None
    if mask is not None and bool((mask > 0.5).any()):
        found["psnr_masked"] = psnr(pred, truth, mask)
        corrected = torch.where((mask > 0.5)[..., None], colour_corrected(pred, truth, mask), pred)
        found["psnr_cc_masked"] = psnr(corrected, truth, mask)
    if corrected is None or not cut_out:
        corrected = pred if cut_out else colour_corrected(pred, truth)
    found["psnr_cc"] = psnr(corrected, truth)
    return found
