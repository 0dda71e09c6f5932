"""Colours at mask edges, where a pixel of a photograph mixes object and background.

Against a binary mask such a pixel is evidence for a darker or half-transparent object just inside the outline, and the surface shrinks by
0.05 to 0.1 pixels. Training uses the mean colour of the nearest interior pixels instead. Photographs that renderings are compared
with are not changed.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.rays import Scene

NEIGHBOURS = np.ones((3, 3), np.uint8)
WINDOW = (5, 5)


def edge_colours(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask pixels that touch the outside, and the mean colour of the interior pixels in a window around each.

    image [H, W, 3] uint8, mask [H, W] uint8. Returns flat indices [E] int64, ascending, and colours [E, 3] uint8. Edge pixels without
    interior pixels in their window, as in thin parts, are omitted.
    """
    inside = (mask > 127).astype(np.uint8)
    core = cv2.erode(inside, NEIGHBOURS, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.blur(core.astype(np.float32), WINDOW)
    index = np.flatnonzero((inside > core) & (weight > 0.5 / 25))
    colour = cv2.blur(image.astype(np.float32) * core[..., None], WINDOW).reshape(-1, 3)[index] / weight.reshape(-1)[index, None]
    return index, colour.round().clip(0, 255).astype(np.uint8)


def scene_edges(scene: Scene) -> tuple[Tensor, Tensor] | None:
    """Indices [E] int64 into the N * H * W pixels of `scene.images`, ascending, and colours [E, 3] uint8, over the training views.

    None without masks, with masks that are not applied, and with alpha channels, whose colours are not mixed.
    """
    if scene.masks is None or scene.test_background != "black":
        return None
    height, width = scene.cameras.height, scene.cameras.width
    indices, colours = [], []
    for i in sorted(scene.train):
        w, h = scene.cameras.size(i)
        at, rgb = edge_colours(scene.image(i).numpy(), scene.masks[i, :h, :w].numpy())
        indices.append((i * height + at // w) * width + at % w)
        colours.append(rgb)
    return torch.from_numpy(np.concatenate(indices)), torch.from_numpy(np.concatenate(colours))
