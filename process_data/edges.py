"""Colours at the edge of a mask: a photograph's pixels there mix the object with what lies behind it.

Composited by a mask that knows only yes and no, such a pixel asks the object to be darker or half transparent just inside
its outline and of nothing outside, and the surface shrinks by a twentieth to a tenth of a pixel. Training takes the colour of
the object's nearest pixels instead; the photographs that views are compared with stay as they are.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.rays import Scene

NEAR = np.ones((3, 3), np.uint8)
AROUND = (5, 5)


def edge_colours(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a mask [H, W] uint8 that touch its outside, and the mean colour of those near them that do not.

    image [H, W, 3] uint8. Returns flat indices [E] int64, ascending, and colours [E, 3] uint8; thin parts that are all edge
    keep what they have.
    """
    inside = (mask > 127).astype(np.uint8)
    core = cv2.erode(inside, NEAR, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.blur(core.astype(np.float32), AROUND)
    index = np.flatnonzero((inside > core) & (weight > 0.5 / 25))
    colour = cv2.blur(image.astype(np.float32) * core[..., None], AROUND).reshape(-1, 3)[index] / weight.reshape(-1)[index, None]
    return index, colour.round().clip(0, 255).astype(np.uint8)


def scene_edges(scene: Scene) -> tuple[Tensor, Tensor] | None:
    """Indices [E] int64 into all pixels of the scene, ascending, and colours [E, 3] uint8, over the training views.

    None where there is nothing to repair: no masks, masks not used, or alpha channels, whose colours are the object's own.
    """
    if scene.masks is None or scene.test_background != "black":
        return None
    area = scene.cameras.height * scene.cameras.width
    found = [(i, *edge_colours(scene.images[i].numpy(), scene.masks[i].numpy())) for i in sorted(scene.train)]
    index = np.concatenate([i * area + at for i, at, _ in found])
    return torch.from_numpy(index), torch.from_numpy(np.concatenate([rgb for *_, rgb in found]))
