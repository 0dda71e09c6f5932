"""dataset.on_disk: a scene larger than memory. Nothing of its size lies in memory, and every result is the same."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from confs.schema import DatasetConfig
from process_data import rays
from process_data.load import load_scene
from process_data.rays import RayDataset
from systems.patches import Patches
from systems.plane_sweep import _signature
from tests import formats
from tests.scenes import ring_cameras
from tests.systems.test_train import config, same, trainer, weights
from utils import memory
from utils.errors import NO_MEMORY, UserError
from utils.image import write_png
from utils.rays import Scene

ROOT = Path(__file__).parents[2]
N, SIDE = 150, 512  # photographs of SIDE x SIDE: 118 MB, and 39 MB of masks


def both(folder, **more) -> tuple[Scene, Scene]:
    """(in memory, on disk)."""
    return tuple(load_scene(DatasetConfig(root_dir=str(folder), hold_every=4, on_disk=on, **more)) for on in (False, True))  # type: ignore[return-value]


def equal(a: Scene, b: Scene) -> bool:
    pixels = torch.equal(a.images, b.images) and (a.masks is b.masks or torch.equal(a.masks, b.masks))
    return pixels and torch.equal(a.cameras.c2w, b.cameras.c2w) and torch.equal(a.to_world, b.to_world) and a.train == b.train


def test_the_scene_is_the_same(tiny_scene):
    plain, mapped = both(tiny_scene)
    assert not plain.on_disk and [stack.pixel for stack in mapped.on_disk] == [3, 1]
    assert equal(plain, mapped) and _signature(plain, 1.0) == _signature(mapped, 1.0)
    assert mapped.images.data_ptr() == mapped.on_disk[0].array.ctypes.data and mapped.images.dtype == torch.uint8


@pytest.mark.parametrize("opaque", [False, True])
def test_alpha_channels(tmp_path, opaque):
    """They are masks unless all is opaque."""
    written = formats.make(n_views=4)
    pictures = [np.dstack([image[..., :3], np.maximum(image[..., 3], opaque)]) for image in written.images]
    plain, mapped = both(formats.write_transforms(tmp_path, replace(written, images=pictures)))
    assert equal(plain, mapped) and (plain.masks is None) == opaque and len(mapped.on_disk) == (1 if opaque else 2)


def test_batches_and_patches_are_the_same(tiny_scene):
    plain, mapped = both(tiny_scene)
    for clean in (False, True):
        a, b = (RayDataset(scene, 1.0, 3, clean_edges=clean)[7, 500] for scene in (plain, mapped))
        assert torch.equal(a.rgb, b.rgb) and torch.equal(a.mask, b.mask) and torch.equal(a.rays.dirs, b.rays.dirs)
    cpu = torch.device("cpu")
    a, b = Patches(plain, cpu), Patches(mapped, cpu)
    assert torch.equal(a.grey, b.grey) and b.stack.file is not None and a.stack.file is None
    uv = torch.tensor([[10.0, 12.0], [20.0, 9.0], [1.0, 1.0]])
    assert all(torch.equal(x, y) for x, y in zip(a._around(torch.tensor([0, 3, 7]), uv), b._around(torch.tensor([0, 3, 7]), uv)))


def test_pixels_for_another_device_are_read_on_the_host(tiny_scene):
    """What is sent there was read before, and is equal; tests/pretend/case_graph.py trains with it on the pretended device."""
    plain, mapped = both(tiny_scene)
    away, here = RayDataset(mapped, 1.0, 3), RayDataset(plain, 1.0, 3)
    assert away.host is None and here.drawn(7, 500)[2:] == (None, None)
    away.host, away.pixels, away.masks, away.edges = RayDataset(mapped, 1.0, 3), None, None, None
    a, b = away[7, 500], here[7, 500]
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.mask, b.mask) and torch.equal(a.rays.dirs, b.rays.dirs)


def test_the_training_is_the_same(tiny_scene, tmp_path):
    found = []
    for on in (False, True):
        words = [f"dataset.on_disk={on}", "trainer.max_steps=4", "loss.patches=0.1", "trainer.threads=1"]
        t = trainer(config(tiny_scene, tmp_path, *words), tmp_path / str(on))
        assert bool(t.scene.on_disk) == on and t.train()
        found.append(weights(tmp_path / str(on)))
    assert same(*found)


def test_a_scene_that_does_not_fit_is_told_of_the_option(tiny_scene, monkeypatch):
    assert "dataset.on_disk=true" in NO_MEMORY
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda: 10 * 24 * 32)
        with pytest.raises(UserError, match="are free; .* or dataset.on_disk=true"):
            load_scene(DatasetConfig(root_dir=str(tiny_scene)))
    sizes = (1000, 1000, 1000, 4, (1000, 1000), 2, "scene")
    monkeypatch.setattr(memory, "available", lambda: 1_000_000_000)
    with pytest.raises(UserError, match="dataset.on_disk=true"):
        memory.check_fits(*sizes)
    assert "3.73 GiB kept on disk, 0.02 GiB of memory at the peak" in memory.check_fits(*sizes, on_disk=True)


def test_a_card_that_is_too_small_is_one_sentence():
    class Large:
        def to(self, device):
            raise torch.OutOfMemoryError("CUDA out of memory")

        def numel(self):
            return 20 << 30

    with pytest.raises(UserError, match=r"do not fit on cuda \(20.0 GiB\): set dataset.on_disk=true"):
        rays._photographs_on(Large(), "cuda")


MEASURE = """
import json, sys, threading
import torch
from confs.schema import DatasetConfig
from process_data.load import load_scene
from process_data.rays import RayDataset
from systems.patches import Patches
from systems.plane_sweep import _signature

def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

grown = []
load_scene(DatasetConfig(root_dir=sys.argv[2]))  # what is loaded once
for on_disk in (True, False):
    before, done = anonymous(), threading.Event()
    peak = [before]
    watcher = threading.Thread(target=watch)
    watcher.start()
    scene = load_scene(DatasetConfig(root_dir=sys.argv[1], on_disk=on_disk))
    data, patches = RayDataset(scene, 1.0, 0), Patches(scene, torch.device("cpu"))
    data[0, 1000], _signature(scene, 1.0)
    done.set()
    watcher.join()
    grown.append(max(*peak, anonymous()) - before)
    size = scene.images.numel() + scene.masks.numel()
    del scene, data, patches
print(json.dumps([size, *grown]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists() or "RssAnon" not in Path("/proc/self/status").read_text(), reason="no RssAnon")
def test_memory_does_not_grow_with_the_photographs(tiny_scene, tmp_path):
    """Memory that is no page of a file, at its peak, while the scene is loaded, a batch drawn, and the term of patches made."""
    v, u = np.mgrid[:SIDE, :SIDE]
    shade = ((np.hypot(u - SIDE / 2, v - SIDE / 2) < SIDE / 4) * 200).astype(np.uint8)
    write_png(tmp_path / "one.png", np.repeat(shade[..., None], 3, 2))
    write_png(tmp_path / "mask.png", np.where(shade > 0, 255, 0).astype(np.uint8))
    K, mats = np.array([[600.0, 0, 256], [0, 600, 256], [0, 0, 1]]), {}
    for folder in ("image", "mask"):
        (tmp_path / "scene" / folder).mkdir(parents=True)
    for i, c2w in enumerate(ring_cameras(N)):
        os.link(tmp_path / "one.png", tmp_path / f"scene/image/{i:03d}.png")
        os.link(tmp_path / "mask.png", tmp_path / f"scene/mask/{i:03d}.png")
        world = np.eye(4)
        world[:3] = K @ np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], 1)
        mats |= {f"world_mat_{i}": world, f"scale_mat_{i}": np.eye(4)}
    np.savez(tmp_path / "scene/cameras_sphere.npz", **mats)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "scene"), str(tiny_scene)]
    output = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    ).stdout
    size, on_disk, in_memory = json.loads(output)
    assert size == 4 * N * SIDE**2
    assert on_disk < 0.2 * size and in_memory > 0.95 * size, (size, on_disk, in_memory)
