"""How good a recovered material is: `python -m tests.benchmarks.material RUN SCENE [--relit DIR]`.

RUN: the run folder of a material. SCENE: a folder with transforms_relight.json and, for each of its poses, truth_albedo/,
truth_roughness/ and truth_metallic/ (linear values) and relight/ (sRGB, under another light). DIR: our pictures of these
poses under that light. Figures are over the pixels inside the mask; albedo is judged after one scale a channel, which is
then applied to the relit pictures too.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from confs.load import load_config
from process_data.poses import move, read_poses
from process_data.rays import view_rays
from systems.build import restore_system
from tests.benchmarks.report import report
from utils import checkpoint
from utils.colour import linear_to_srgb, srgb_to_linear
from utils.image import read_raster, sheet, write_png


def truth_image(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(values [H, W, 3] in [0, 1], alpha [H, W]) of a PNG."""
    raster = torch.from_numpy(read_raster(folder / f"{name}.png")).float() / 255
    alpha = raster[..., 3] if raster.shape[-1] == 4 else torch.ones(raster.shape[:2])
    return raster[..., :3], alpha


@torch.no_grad()
def predict(run: Path, scene: Path) -> list[dict]:
    """For each pose: albedo, roughness, metallic, hit as [H, W, ...] and the pose's name."""
    path = checkpoint.resolve(run)
    state = checkpoint.load_checkpoint(path)
    cfg = load_config(saved=state["config"])
    model = restore_system(cfg, torch.device("cpu"), state, path).model
    model.set_frame()
    cameras, names = read_poses(scene / "transforms_relight.json", (400, 400))
    cameras = move(cameras, torch.linalg.inv(model.to_world))
    cameras = type(cameras)(cameras.K, cameras.c2w.float(), cameras.height, cameras.width)
    found = []
    for i, name in enumerate(names):
        rays = view_rays(cameras, i, 1.0)
        hits, surface = model.first_hits(rays.origins, rays.dirs)
        values = torch.zeros(len(rays), 5)
        values[surface.ray] = torch.cat([model.material_at(part).stack() for part in surface.points.split(65536)])
        values = values.view(cameras.height, cameras.width, 5)
        found.append(
            {
                "name": name,
                "albedo": values[..., :3],
                "roughness": values[..., 3],
                "metallic": values[..., 4],
                "hit": hits.found.view(values.shape[:2]),
            }
        )
    return found


def psnr(error: np.ndarray) -> float:
    """dB of the mean of squared errors."""
    return float(-10 * np.log10(max(np.mean(np.square(error)), 1e-10)))


def judge(found: list[dict], scene: Path, relit: Path | None, picture: Path | None = None) -> dict:
    """The figures of the module's docstring; with a path also a picture of the maps beside the truth."""
    parts, masks, rows = {k: ([], []) for k in ("albedo", "roughness", "metallic")}, [], []
    for view in found:
        truth = {k: truth_image(scene / f"truth_{k}", view["name"]) for k in parts}
        mask = (truth["albedo"][1] > 0.999) & view["hit"]
        masks.append(mask)
        for key, (ours, theirs) in parts.items():
            value = truth[key][0] if key == "albedo" else truth[key][0][..., 0]
            ours.append(view[key][mask].numpy())
            theirs.append(value[mask].numpy())
    value = {k: (np.concatenate(a), np.concatenate(b)) for k, (a, b) in parts.items()}
    ours, theirs = value["albedo"]
    scale = (ours * theirs).sum(0) / (ours * ours).sum(0)
    metal, paint = value["metallic"][1] > 0.5, value["metallic"][1] < 0.5
    rough = value["roughness"][0]
    result = {
        "albedo_psnr": psnr(ours * scale - theirs),
        "scale": scale.tolist(),
        "roughness_mae": float(np.abs(rough - value["roughness"][1]).mean()),
        "roughness_metal": float(rough[metal].mean()),
        "roughness_other": float(rough[paint].mean()),
        "roughness_gap": float(rough[paint].mean() - rough[metal].mean()),
        "metallic_accuracy": float(((value["metallic"][0] > 0.5) == metal).mean()),
    }
    if relit is not None:
        errors, plain = [], []
        for view, mask in zip(found, masks):
            theirs, mine = truth_image(scene / "relight", view["name"])[0][mask], truth_image(relit, view["name"])[0][mask]
            scaled = linear_to_srgb(srgb_to_linear(mine) * torch.tensor(scale).float()).clamp(0, 1)
            errors.append((scaled - theirs).numpy())
            plain.append((mine - theirs).numpy())
        result |= {"relight_psnr": psnr(np.concatenate(errors)), "relight_psnr_unscaled": psnr(np.concatenate(plain))}
    if picture is not None:
        for view in found[:: max(1, len(found) // 4)]:
            hit = view["hit"][..., None].float()
            cells = []
            for key in parts:
                mine = view[key] if key == "albedo" else view[key][..., None].expand(-1, -1, 3)
                mine = (mine * torch.tensor(scale).float() if key == "albedo" else mine).clamp(0, 1) * hit + 1 - hit
                value, alpha = truth_image(scene / f"truth_{key}", view["name"])
                cells += [mine, value * alpha[..., None] + 1 - alpha[..., None]]
            rows.append(sheet(cells))
        write_png(picture, np.concatenate(rows))
    return result


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("scene", type=Path)
    p.add_argument("--relit", type=Path, help="folder of NAME.png for each pose of transforms_relight.json")
    p.add_argument("--picture", type=Path, help="write the maps beside the truth there")
    args = p.parse_args()
    return report(lambda: judge(predict(args.run, args.scene), args.scene, args.relit, args.picture), indent=1)


if __name__ == "__main__":
    sys.exit(main())
