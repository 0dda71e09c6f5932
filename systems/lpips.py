"""LPIPS with AlexNet (Zhang et al., 2018), version 0.1, from weight files that are on this machine; nothing is downloaded.

The features of both pictures after each of five convolutions are scaled to unit length per pixel; their squared differences,
weighted per channel, are averaged over the pixels and summed over the layers.
"""

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ALEXNET, DIGEST, LINEAR = "alexnet-owt-7be5be79.pth", "7be5be79", "lpips_alex.pth"
PACKAGES = (("lpips", "weights/v0.1/alex.pth"), ("torchmetrics", "functional/image/lpips_models/alex.pth"))
LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # number among AlexNet's features, stride, padding
CHANNELS = (64, 192, 384, 256, 256)
POOLED = (1, 2)  # layers before which a maximum over 3 x 3 pixels, stride 2, is taken
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = 32  # pixels a side


class Unavailable(Exception):
    """Why LPIPS cannot be computed here: a clause for the log."""


class Lpips:
    """alexnet: the state of torchvision's AlexNet. linear: the channel weights, as the lpips package stores them."""

    def __init__(self, alexnet: dict[str, Tensor], linear: dict[str, Tensor], device: torch.device | str = "cpu"):
        try:
            self.convolutions = [
                tuple(alexnet[f"features.{k}.{part}"].float().to(device) for part in ("weight", "bias")) for k, _, _ in LAYERS
            ]
            self.weights = [linear[f"lin{i}.model.1.weight"].float().to(device).view(1, n, 1, 1) for i, n in enumerate(CHANNELS)]
        except (KeyError, RuntimeError, AttributeError) as error:
            raise Unavailable(f"the weight files are of another network ({str(error)[:80]})") from None
        self.device = torch.device(device)

    def _features(self, image: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x, found = (2 * image - 1 - shift) / scale, []
        for i, ((weight, bias), (_, stride, padding)) in enumerate(zip(self.convolutions, LAYERS)):
            x = F.max_pool2d(x, 3, 2) if i in POOLED else x
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> float | None:
        """LPIPS of two images [H, W, 3] in [0, 1]; None where they are smaller than SMALLEST.

        mask [H, W]: the mean over its pixels (> 0.5) of each layer's differences, enlarged to the picture; None where it is empty.
        """
        if a.shape != b.shape:
            raise ValueError(f"images differ in shape: {list(a.shape)} and {list(b.shape)}")
        if min(a.shape[:2]) < SMALLEST:
            return None
        one, two = (self._features(image.to(self.device).float().clamp(0, 1).permute(2, 0, 1)[None]) for image in (a, b))
        maps = [((x - y).square() * w).sum(1, keepdim=True) for x, y, w in zip(one, two, self.weights)]
        if mask is None:
            return float(sum(m.mean() for m in maps))
        inside = mask.to(self.device) > 0.5
        if not bool(inside.any()):
            return None
        size = list(a.shape[:2])
        return float(sum(F.interpolate(m, size, mode="bilinear", align_corners=False)[0, 0][inside].mean() for m in maps))


def _linear_file(folder: Path) -> Path | None:
    """lpips_alex.pth beside AlexNet's weights, else the file that an installed package brings."""
    if (folder / LINEAR).is_file():
        return folder / LINEAR
    for package, name in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin and (path := Path(spec.origin).parent / name).is_file():
            return path
    return None


def load_lpips(device: torch.device | str = "cpu", folder: Path | None = None) -> Lpips:
    """LPIPS from the weights in torch's cache (folder: instead of it). Raises Unavailable that says what to put where."""
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    alexnet, linear = folder / ALEXNET, _linear_file(folder)
    missing = [] if alexnet.is_file() else [ALEXNET]
    missing += [] if linear else [f"lpips' weights/v0.1/alex.pth (as {LINEAR}, or pip install lpips==0.1.4 --no-deps)"]
    if linear is None or missing:
        raise Unavailable(f"put {' and '.join(missing)} into {folder}")
    with alexnet.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(DIGEST):
            raise Unavailable(f"{alexnet} is damaged or another file (its SHA-256 does not begin with {DIGEST}); copy it again")
    try:
        one, two = (torch.load(path, map_location="cpu", weights_only=True) for path in (alexnet, linear))
    except Exception as error:  # noqa: BLE001 - torch raises many types on damaged files
        raise Unavailable(f"the weights in {folder} cannot be read ({type(error).__name__}); copy them again") from None
    return Lpips(one, two, device)
