"""Write a scene with known cameras as COLMAP would have left it: does the layout change the surface?

    python -m tests.benchmarks.as_colmap inputs/bunny outputs/bunny_colmap [--text]
    python -m tests.benchmarks.recipes --scenes inputs/bunny outputs/bunny_colmap --config confs/neus-colmap.yaml ...

Photographs and masks keep their pixels; the true mesh, where there is one, goes along and lends its corners as points.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch

from confs.schema import DatasetConfig
from process_data.load import load_scene, recognise
from tests.formats import Written, write_colmap
from utils.image import write_png
from utils.mesh import load_mesh


def as_colmap(scene: Path, out: Path, text: bool = False, n_points: int = 2000) -> Path:
    """The folder `out`: images/, masks/ and sparse/0 of the scene. Raises UserError where the scene cannot be read."""
    read = load_scene(DatasetConfig(root_dir=str(scene), name=recognise(DatasetConfig(root_dir=str(scene)))), 1.0)
    to_world = torch.as_tensor(read.to_world).double()
    scale = float(torch.linalg.det(to_world[:3, :3]).abs() ** (1 / 3))
    pose = read.cameras.c2w.double()
    c2w = torch.cat([to_world[:3, :3] / scale @ pose[:, :, :3], (to_world[:3, :3] @ pose[:, :, 3:]) + to_world[:3, 3:]], 2).numpy()
    truth = scene / "gt_mesh.ply"
    points = np.zeros((0, 3))
    if truth.exists():
        vertices = np.asarray(load_mesh(truth).vertices)
        points = vertices[np.random.default_rng(0).choice(len(vertices), min(n_points, len(vertices)), replace=False)]
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(truth, out / truth.name)
    images = [image.numpy() for image in read.images]
    write_colmap(out, Written(read.cameras.K[0].numpy().astype(float), (), c2w, images), text, sub="", points=points)
    for i, mask in enumerate(read.masks if read.masks is not None else []):
        write_png(out / "masks" / f"{i:03d}.png", mask.numpy())
    return out


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scene", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--text", action="store_true", help="cameras.txt and its kin instead of .bin")
    args = p.parse_args()
    print(as_colmap(args.scene, args.out, args.text))
