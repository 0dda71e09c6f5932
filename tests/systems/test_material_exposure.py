"""Exposure of each photograph in NeRO's second stage."""

import torch

from confs.load import load_config
from process_data.load import load_scene
from systems.build import build_system, restore_system
from systems.trainer import Trainer
from tests.material_scenes import write_material_scene
from tests.systems.test_train import ROOT
from utils.checkpoint import load_checkpoint
from utils.image import read_rgb, write_png
from utils.log import RunFolder

WORDS = [
    "seed=1", "dataset.name=dtu", "dataset.hold_every=4", "trainer.device=cpu", "trainer.max_steps=80", "trainer.val_minutes=0",
    "trainer.n_rays=256", "trainer.max_rays=256", "trainer.target_samples=4096", "model.appearance=affine", "optim.lr_appearance=0.01",
    "model.material.n_diffuse=8", "model.material.n_specular=8", "model.material.n_light=8", "model.material.light_height=8",
    "model.material.hidden=16", "model.grid.n_levels=4", "model.grid.log2_size=10", "model.grid.top=32", "model.grid.levels=4",
]  # fmt: skip


def test_photographs_that_are_darker_are_found_to_be(tmp_path):
    folder = write_material_scene(tmp_path / "scene", n_views=8, size=32)
    for path in sorted((folder / "image").iterdir())[1::2]:
        write_png(path, (torch.as_tensor(read_rgb(path)).float() * 0.7).round().to(torch.uint8))
    words = [*WORDS, f"dataset.root_dir={folder}", f"model.mesh={folder / 'ball.ply'}"]
    cfg = load_config(ROOT / "confs/nero-material.yaml", words)
    scene, device = load_scene(cfg.dataset, cfg.model.radius), torch.device("cpu")
    t = Trainer(build_system(cfg, device, scene), scene, cfg, RunFolder(tmp_path / "run"), device)
    assert t.train()
    appearance = t.system.model.appearance
    with torch.no_grad():
        shown = torch.stack([appearance.photographed(torch.full((1, 3), 0.4), 1.0, torch.tensor([i])).mean() for i in range(8)])
    assert shown[1::2].max() < 0.9 * shown[[2, 6]].min() and torch.equal(shown[[0, 4]], torch.full((2,), 0.4))  # 0 and 4 are held out
    path = tmp_path / "run/ckpt/last.pt"
    alone = restore_system(cfg, device, load_checkpoint(path), path)  # for --relight, which has no photographs
    assert alone.model.appearance is None


def test_it_is_on_for_photographs_with_estimated_cameras():
    kinds = [load_config(ROOT / "confs/nero-material.yaml", [f"dataset.name={name}"]).model.appearance for name in ("colmap", "blender")]
    assert kinds == ["affine", "none"]
