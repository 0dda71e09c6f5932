"""A scene in DTU layout with things in front of the object that move from photograph to photograph, to see what they do to the surface.

    python -m tests.benchmarks.distractors data/bunny inputs/bunny_distractors --share 0.4
    python run.py --config confs/dtu-wmask.yaml --train dataset.root_dir=inputs/bunny_distractors model.distractors=true

A share of the training photographs (held out are every 8th: they stay clean) gets a coloured blob over a tenth to a quarter of the
object. Masks, cameras and the true mesh are those of the scene.
"""

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np

from utils.image import read_rgb, write_png


def blob(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(where [H, W] bool, colours [H, W, 3] uint8) of a smooth random shape that covers 10 to 25 % of the mask's area."""
    h, w = mask.shape
    inside = np.argwhere(mask)
    centre = inside[rng.integers(len(inside))]
    radius = np.sqrt(rng.uniform(0.1, 0.25) * len(inside) / np.pi)
    y, x = np.mgrid[:h, :w]
    angle = np.arctan2(y - centre[0], x - centre[1])
    wobble = 1 + sum(rng.uniform(0.1, 0.25) * np.cos(k * angle + rng.uniform(0, 7)) for k in (2, 3))
    where = np.hypot(y - centre[0], x - centre[1]) < radius * wobble
    noise = cv2.resize(rng.uniform(-40, 40, (8, 8, 3)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    return where, (rng.uniform(40, 215, 3) + noise).clip(0, 255).astype(np.uint8)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scene", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--share", type=float, default=0.4, help="of the training photographs that are disturbed")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    shutil.copytree(a.scene, a.out)
    rng, disturbed = np.random.default_rng(a.seed), 0
    for i, (path, mask) in enumerate(zip(sorted((a.out / "image").glob("*.png")), sorted((a.out / "mask").glob("*.png")))):
        if i % 8 == 0 or rng.uniform() > a.share:
            continue
        picture = read_rgb(path).copy()
        where, colours = blob(read_rgb(mask)[..., 0] > 127, rng)
        picture[where] = colours[where]
        write_png(path, picture)
        disturbed += 1
    print(f"{disturbed} photographs disturbed -> {a.out}")


if __name__ == "__main__":
    main()
