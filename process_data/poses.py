"""Cameras to render from: those of a `transforms.json`, and an orbit around the unit sphere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from process_data.capture import checked_pose
from process_data.files import find_image
from process_data.path import look_at
from process_data.transforms import FLIP, camera_of, read_json
from utils.errors import UserError, raise_all
from utils.image import image_size
from utils.rays import Cameras


def read_poses(path: str | Path, size: tuple[int, int]) -> tuple[Cameras, list[str]]:
    """(cameras in the file's world, OpenCV axes; their names). Raises UserError that lists all problems.

    Their common size is `w` and `h` of the file, or that of its images, or else `size` (width, height).
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UserError(f"{path}: expected a transforms.json with cameras to render from")
    data = read_json(path)
    top = {key: value for key, value in data.items() if key != "frames"}
    Ks, poses, names, sizes, problems = [], [], [], [], []
    for i, frame in enumerate(data["frames"]):
        where = f"{path}: frame {i}"
        record, name = {**top, **frame}, str(frame.get("file_path") or f"{i:03d}")
        try:
            if not (record.get("w") and record.get("h")):
                image = find_image(path.parent, name)
                record["w"], record["h"] = image_size(image) if image else size
            K, shape, lens = camera_of(record, path, where)
            if not lens.is_pinhole:
                raise UserError(f"{where}: has lens distortion, expected a pinhole camera; remove the distortion")
            c2w = checked_pose(frame.get("transform_matrix"), f"{where}: transform_matrix")
        except UserError as error:
            problems.append(str(error))
            continue
        Ks.append(K)
        poses.append(np.concatenate([c2w[:, :3] @ FLIP, c2w[:, 3:]], 1))
        names.append(Path(name).stem)
        sizes.append(shape)
    raise_all(problems)
    if len(set(sizes)) > 1:
        raise UserError(f"{path}: cameras of {len(set(sizes))} sizes, expected one; use one file for each size")
    usable = len(set(names)) == len(names) and all(name.isprintable() and len(name) <= 50 for name in names)  # as names of pictures
    names = names if usable else [f"{i:03d}" for i in range(len(names))]
    return Cameras(torch.tensor(np.stack(Ks)).float(), torch.tensor(np.stack(poses)), sizes[0][1], sizes[0][0]), names


def move(cameras: Cameras, matrix: Tensor) -> Cameras:
    """Cameras in another frame; matrix [4, 4], a similarity, maps points of their frame to it."""
    m = matrix.double()
    scale = torch.linalg.det(m[:3, :3]).abs() ** (1 / 3)
    c2w = cameras.c2w.double()
    turned = m[:3, :3] @ c2w[:, :, :3] / scale
    return replace(cameras, c2w=torch.cat([turned, m[:3, :3] @ c2w[:, :, 3:] + m[:3, 3:]], 2))


def circle(n: int, size: tuple[int, int], elevation: float, distance: float) -> Cameras:
    """n cameras on a circle around the unit sphere, which fills their images; z up, elevation in degrees, size (width, height)."""
    turn, rise = 2 * np.pi * np.arange(n) / n, np.radians(elevation)
    away = np.stack([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.full(n, np.sin(rise))], 1)
    c2w = look_at(distance * away, np.zeros(3), np.array([0, 0, 1.0]))
    focal = 0.5 * min(size) * np.sqrt(distance**2 - 1)
    K = np.array([[focal, 0, size[0] / 2 - 0.5], [0, focal, size[1] / 2 - 0.5], [0, 0, 1]])
    return Cameras(torch.tensor(K).float().expand(n, 3, 3).clone(), torch.tensor(c2w), size[1], size[0])
