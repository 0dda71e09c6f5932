"""Evidence between photographs: patches carried through the surface, the plane sweep, free space, colours without directions."""

import json
import signal
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch

import run
from confs.load import load_config
from models.method import RenderOutput
from process_data.rays import RayDataset, make_rays
from systems import begin, plane_sweep
from systems.build import build_system
from systems.free_space import CELLS, CROSSED, centres, free_cells, numbers
from systems.losses import free
from systems.patches import Patches, _Bilinear, source_views
from systems.run import Job
from systems.trainer import Trainer
from tests.scenes import ring_cameras
from tests.systems.test_train import tiny_words
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.image import write_png
from utils.log import RunFolder
from utils.rays import Cameras, FieldOutput, Render, Scene

BALL, SIDE = 0.6, 120
CPU = torch.device("cpu")


def paint(x):
    """Grey levels [P] in (0, 1) of points [P, 3], without a pattern that repeats."""
    waves = torch.tensor([[9.0, 3, 5], [-4, 11, 2], [6, -7, 13], [17, 5, -9], [3, 16, 12]])
    return 0.5 + 0.1 * torch.sin(x @ waves.T + torch.arange(5.0)).sum(1).clamp(-4.5, 4.5)


def ball_scene(n=20, texture=True):
    """A ball with a texture before grey, seen by a ring of cameras."""
    c2w = torch.from_numpy(ring_cameras(n)).float()
    K = torch.tensor([[160.0, 0, SIDE / 2 - 0.5], [0, 160, SIDE / 2 - 0.5], [0, 0, 1]]).expand(n, 3, 3)
    cameras = Cameras(K.contiguous(), c2w, SIDE, SIDE)
    images = torch.full((n, SIDE, SIDE, 3), 128, dtype=torch.uint8)
    v, u = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    uv = torch.stack([u, v], -1).reshape(-1, 2).float()
    for i in range(n):
        rays = make_rays(cameras, torch.full((len(uv),), i), uv, BALL)
        hit = rays.near < rays.far
        colour = (paint(rays.origins + rays.near[:, None] * rays.dirs) * 255).round() if texture else torch.full((len(uv),), 90.0)
        images[i].view(-1, 3)[hit] = colour[hit, None].to(torch.uint8).expand(-1, 3)
    names = tuple(f"{i}.png" for i in range(n))
    return Scene("ball", images, None, cameras, torch.eye(4, dtype=torch.float64), tuple(range(1, n)), (0,), names)


@pytest.fixture(scope="module")
def scene():
    return ball_scene()


def some_pixels(scene, n=300):
    view = torch.tensor(scene.train)[torch.randint(len(scene.train), (n,))]
    uv = torch.randint(35, SIDE - 35, (n, 2)).float()
    rays = make_rays(scene.cameras, view, uv, BALL)
    hit = rays.near < rays.far
    return view[hit], uv[hit], rays[hit]


# ------------------------------------------------------------------------------------------------ patches
def test_a_patch_looks_alike_through_the_true_surface_alone(scene):
    patches, (view, uv, rays) = Patches(scene, CPU), some_pixels(scene)

    def cost(off):
        x = rays.origins + rays.near[:, None] * rays.dirs
        found, valid = patches.compare(view, uv, rays.origins, rays.dirs, rays.near + off, x / BALL)
        assert valid.float().mean() > 0.3
        return float(found[valid].mean())

    assert cost(0.0) < 0.06 and cost(0.03) > 3 * cost(0.0) and cost(-0.03) > 3 * cost(0.0)


def test_the_slope_of_the_cost_leads_to_the_surface(scene):
    patches, (view, uv, rays) = Patches(scene, CPU), some_pixels(scene)
    normal = (rays.origins + rays.near[:, None] * rays.dirs) / BALL
    for off in (0.02, -0.02):
        t = (rays.near + off).requires_grad_()
        cost, valid = patches.compare(view, uv, rays.origins, rays.dirs, t, normal)
        (slope,) = torch.autograd.grad((cost * valid).sum(), t)
        seen = valid.any(1)
        assert (slope[seen] * off > 0).float().mean() > 0.9
    step = 1e-3
    here, there = (patches.compare(view, uv, rays.origins, rays.dirs, rays.near + 0.02 + s, normal)[0] * valid for s in (-step, step))
    t = (rays.near + 0.02).requires_grad_()
    (slope,) = torch.autograd.grad((patches.compare(view, uv, rays.origins, rays.dirs, t, normal)[0] * valid).sum(), t)
    assert torch.corrcoef(torch.stack([(there - here).sum(1) / (2 * step), slope]))[0, 1] > 0.98


class Ball(torch.nn.Module):
    """The distance to a ball of a learned radius."""

    pose = None
    radius = 1.0

    def __init__(self, size):
        super().__init__()
        self.size = torch.nn.Parameter(torch.tensor(size))

    def field_at(self, points, context):
        away = points.norm(dim=1)
        return FieldOutput(away - self.size, points / away[:, None], points[:, :0])


@pytest.mark.parametrize(("size", "sign"), [(BALL - 0.015, -1), (BALL + 0.015, 1)])
def test_the_term_moves_a_surface_to_the_true_one(scene, size, sign):
    batch = RayDataset(scene, 1.0, seed=0)[(0, 2000)]
    model = Ball(size)
    span = make_rays(scene.cameras, batch.view, batch.uv, size)
    hit = span.near < span.far
    render = Render(batch.rgb, hit.float(), torch.where(hit, span.near, 0.0), torch.zeros_like(batch.rgb))
    found = Patches(scene, CPU)(batch, RenderOutput(render), model, None)
    found.backward()
    assert 0 < found < 1 and model.size.grad * sign > 0
    nothing = Render(batch.rgb, torch.zeros(2000), torch.zeros(2000), torch.zeros_like(batch.rgb))
    assert Patches(scene, CPU)(batch, RenderOutput(nothing), model, None) == 0


def test_patches_are_looked_for_in_other_training_views(scene):
    chosen, serve = source_views(scene.cameras.c2w, list(scene.train))
    for i in range(len(chosen)):
        used = chosen[i][serve[i]].tolist()
        assert used and i not in used and 0 not in used  # 0 is held out


# ------------------------------------------------------------------------------------------------ plane sweep
def test_the_sweep_finds_the_surface_and_the_free_space(scene):
    cloud = plane_sweep.sweep(scene, 1.0)
    away = np.abs(np.linalg.norm(cloud.points, axis=1) - BALL)
    assert len(cloud.points) > 500 and np.median(away) < 0.01 and np.quantile(away, 0.95) < 0.04
    assert 0 not in cloud.tracks[:, 1] and cloud.tracks[:, 0].max() == len(cloud.points) - 1
    out = np.linalg.norm(cloud.free, axis=1)
    assert len(cloud.free) > 500 and out.min() > BALL - 1 / CELLS  # half a cell


def test_points_of_a_cell_are_averaged_and_strays_before_the_surface_go():
    rng = np.random.default_rng(0)
    on = np.column_stack([rng.uniform(-0.3, 0.3, (40_000, 2)), rng.normal(0, 0.002, 40_000)])  # a plane, seen by four views above it
    strays = np.column_stack([rng.uniform(-0.2, 0.2, (40, 2)), rng.uniform(0.1, 0.3, 40)])
    eyes = np.array([[1, 0, 2], [-1, 0, 2], [0, 1, 2], [0, -1, 2.0]])
    cloud = plane_sweep._cleaned(np.concatenate([on, strays]), np.arange(40_040) % 4, eyes, 1.0)
    assert 1000 < len(cloud.points) < 40_000 / 4 and np.abs(cloud.points[:, 2]).max() < 0.05
    assert cloud.points[:, 2].std() < 0.002 / 1.5
    assert set(cloud.tracks[:, 1]) == {0, 1, 2, 3} and cloud.tracks[:, 0].max() == len(cloud.points) - 1
    assert len(cloud.free) and cloud.free[:, 2].min() > -1 / CELLS


def test_pixels_of_a_large_photograph_are_the_right_ones():
    """Regression: numbers of pixels beyond 2^24 were rounded to even ones."""
    width, height = 4001, 4300
    columns = (torch.arange(width) % 2 * 255).to(torch.uint8).expand(height, width).reshape(-1)
    uv = torch.tensor([[u + 0.25, v + 0.0] for v in (10, 4290) for u in (100, 101, 102, 3001)])
    got = _Bilinear.apply(torch.cat([columns, columns[:width]]), torch.zeros(len(uv), dtype=torch.int64), uv, width)
    assert torch.allclose(got, torch.tensor([0.25, 0.75, 0.25, 0.75]).repeat(2))


def test_too_little_is_found_without_texture(tmp_path):
    assert plane_sweep.swept(ball_scene(12, texture=False), 1.0, RunFolder(tmp_path)) is None


def test_a_sweep_is_kept_in_the_run_folder(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(plane_sweep, "PIXELS", 6000)
    run = RunFolder(tmp_path / "run")
    first = plane_sweep.swept(scene, 1.0, run)
    assert (tmp_path / "run/points.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(plane_sweep, "sweep", lambda *a: pytest.fail("swept again"))
        again = plane_sweep.swept(scene, 1.0, run)
    assert torch.equal(first.points, again.points) and torch.equal(first.free, again.free) and torch.equal(first.tracks, again.tracks)
    calls = []
    monkeypatch.setattr(plane_sweep, "sweep", lambda *a: calls.append(a))
    assert plane_sweep.swept(scene, 0.9, run, anew=False) is None and not calls
    assert plane_sweep.swept(scene, 0.9, run) is None and calls  # another sphere: not these points
    whole = (tmp_path / "run/points.npz").read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the archive's directory
    spoilt = [whole[:at] + bytes([value]) + whole[at + 1 :] for at, value in ((entry + 10, 99), (entry + 8, 1), (entry + 6, 255))]
    for n, data in enumerate([b"PK\x03\x04 not an archive", *spoilt]):  # a method, a password and a version that zipfile does not know
        (tmp_path / "run/points.npz").write_bytes(data)
        assert plane_sweep.swept(scene, 1.0, run) is None and len(calls) == 2 + n


@pytest.mark.slow
def test_a_run_without_masks_starts_from_the_sweep_and_resumes_bit_for_bit(scene, tmp_path):
    folder, mats = tmp_path / "ball", {}
    for i, (K, c2w) in enumerate(zip(scene.cameras.K.double().numpy(), scene.cameras.c2w.double().numpy())):
        write_png(folder / "image" / f"{i:03d}.png", scene.images[i].numpy())
        mats[f"world_mat_{i}"], mats[f"scale_mat_{i}"] = np.eye(4), np.eye(4)
        mats[f"world_mat_{i}"][:3] = K @ np.concatenate([c2w[:, :3].T, -c2w[:, :3].T @ c2w[:, 3:]], 1)
    np.savez(folder / "cameras_sphere.npz", **mats)
    words = [*tiny_words(), "trainer.threads=1", "trainer.device=cpu", "model.background_field.log2_size=8", "optim.warmup=0"]
    words = [word for word in words if not word.startswith(("dataset.", "model.occupancy", "model.background="))]
    words += [
        f"dataset.root_dir={folder}",
        f"trainer.outputs_dir={tmp_path}",
        "name=n",
        "trainer.finish=false",
        "trainer.max_steps=20",
        "seed=3",
    ]
    assert run.main(["--train", *words, "trainer.trial_name=whole"]) == 0
    log = (tmp_path / "n/whole/log.txt").read_text()
    assert "points that agree" in log and "points on the surface: the SDF is fitted" in log
    saved = load_config(saved=(tmp_path / "n/whole/config.yaml").read_text())
    assert saved.model.start == "sweep" and saved.loss.free == 0.2 and saved.model.dirs_begin == 0.3
    rows = [json.loads(line) for line in (tmp_path / "n/whole/metrics.jsonl").read_text().splitlines()]
    assert {"loss/patches", "loss/free", "loss/points"} <= set().union(*rows)

    real = Trainer._after_step

    def stopped(self, *args):
        real(self, *args)
        self.stop_signal = signal.SIGTERM if self.clock.step == 9 else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_after_step", stopped)
        assert run.main(["--train", *words, "trainer.trial_name=part"]) == 128 + signal.SIGTERM
    assert run.main(["--train", "--resume", str(tmp_path / "n/part")]) == 0
    assert (tmp_path / "n/part/log.txt").read_text().count("points that agree") == 1  # then read from the run folder
    a, b = (load_checkpoint(tmp_path / "n" / name / "ckpt/last.pt")["model"] for name in ("whole", "part"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------ free space
def test_cells_before_a_seen_point_are_free():
    eyes, seen = np.tile([3.0, 0, 0], (CROSSED, 1)), np.tile([0.1, 0, 0], (CROSSED, 1))
    cells = free_cells(eyes, seen, 0.01, 1.0)
    x = centres(cells, 1.0)
    assert len(x) and np.abs(x[:, 1:]).max() < 2 / CELLS and x[:, 0].min() > 0.1 + 2 / CELLS and x[:, 0].max() > 0.97
    assert not cells[numbers(np.array([[-0.5, 0, 0]]), 1.0)[0]]  # behind the point
    assert not free_cells(eyes[:1], seen[:1], 0.01, 1.0).any()  # one line of sight may be a mistake


def test_lines_to_points_beyond_the_sphere_free_it():
    eyes, seen = np.tile([3.0, 0.2, 0], (CROSSED, 1)), np.tile([-5.0, 0.2, 0], (CROSSED, 1))
    x = centres(free_cells(eyes, seen, 0.01, 1.0), 1.0)
    assert x[:, 0].min() < -0.95 and x[:, 0].max() > 0.95


def test_the_term_of_free_space_counts_what_is_enclosed():
    assert free(torch.tensor([-0.02, 0.0, 0.5]), 0.01) == pytest.approx((0.03 + 0.01) / 3)


def test_a_batch_brings_points_and_free_space(scene):
    points, clear = torch.rand(50, 3), torch.rand(70, 3) + 5
    batch = RayDataset(replace(scene, points=points, free=clear), 1.0, seed=0)[(3, 16)]
    assert batch.points.max() <= 1 and batch.free.min() >= 5 and len(batch.points) == len(batch.free)
    alone = RayDataset(replace(scene, points=points), 1.0, seed=0)[(3, 16)]
    assert alone.free is None and torch.equal(alone.points, batch.points)


def test_points_are_drawn_evenly_over_the_surface(scene):
    """Squares of side 0.3, dense, three times as dense, and sparse, whose points are often wrong."""
    rng = torch.Generator().manual_seed(0)

    def square(n, corner):
        return torch.cat([torch.rand(n, 2, generator=rng) * 0.3 + torch.tensor(corner), torch.zeros(n, 1)], 1)

    points = torch.cat([square(2000, (-0.6, -0.6)), square(6000, (0.3, 0.3)), square(100, (-0.6, 0.3))])
    data = RayDataset(replace(scene, points=points), 1.0, seed=0)
    drawn = torch.cat([data[(step, 16)].points for step in range(30)])
    dense, denser, sparse = (int(((drawn[:, 0] > 0) == x).logical_and((drawn[:, 1] > 0) == y).sum()) for x, y in ((0, 0), (1, 1), (0, 1)))
    assert dense + denser + sparse == len(drawn) and 0.9 < denser / dense < 1.1
    assert 0.05 < sparse / dense < 0.2  # one chance of eight for a point alone in its cube
    parts = [RayDataset(replace(scene, points=points), 1.0, seed=0, share=(k, 2)).draw_points(3) for k in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == data.draw_points(3).numel() and not torch.equal(*parts)


# ------------------------------------------------------------------------------------------------ config
@pytest.mark.parametrize(
    ("words", "points", "sweeps", "start"),
    [
        ([], False, True, "sweep"),
        ([], True, False, "points"),  # photographs that have points keep them
        (["model.start=sweep"], True, True, "sweep"),
        (["model.start=sphere"], False, False, "sphere"),
        (["model.name=nero-shape"], False, False, "sphere"),  # mirrors deceive a sweep
    ],
)
def test_which_scenes_are_swept(words, points, sweeps, start, scene, tmp_path, monkeypatch):
    known = with_points(scene)
    calls = []
    monkeypatch.setattr(begin, "swept", lambda *a: calls.append(a) or known)
    load = partial(load_config, None, ["model.background=learned", "dataset.apply_mask=false", *words])
    _, cfg = begin.with_surface(Job(load(), load), known if points else scene, RunFolder(tmp_path), True)
    assert bool(calls) == sweeps and cfg.model.start == start


@pytest.mark.parametrize("start", ["sweep", "points"])
def test_a_start_that_cannot_be_had_is_refused(start, scene, tmp_path, monkeypatch):
    """Regression: a sphere was trained with the settings of a surface that is known."""
    monkeypatch.setattr(begin, "swept", lambda *a: None)
    load = partial(load_config, None, ["model.background=learned", "dataset.apply_mask=false", f"model.start={start}"])
    with pytest.raises(UserError, match=f"model.start={start}, but .* leave out model.start"):
        begin.with_surface(Job(load(), load), scene, RunFolder(tmp_path), True)


def with_points(scene):
    """The scene with points on its ball that each view in front of them sees."""
    x = torch.nn.functional.normalize(torch.randn(400, 3), dim=1) * BALL
    seen = (x @ scene.cameras.c2w[:, :, 3].T > BALL**2).nonzero()
    return replace(scene, points=x, tracks=seen)


@pytest.mark.parametrize(
    ("words", "start", "expected"),
    [
        (["model.background=learned", "dataset.apply_mask=false"], "sweep", ("sweep", 0.2, 0.3)),
        (["model.background=learned", "dataset.apply_mask=false"], "points", ("points", 0.0, 0.0)),
        (["model.background=learned", "dataset.apply_mask=false"], None, ("auto", 0.0, 0.0)),
        (["dataset.apply_mask=true"], "sweep", ("sphere", 0.0, 0.0)),
        (["model.start=sweep", "loss.free=0.7"], None, ("sweep", 0.7, 0.3)),
    ],
)
def test_the_start_follows_what_is_known(words, start, expected):
    cfg = load_config(None, words, start=start)
    assert (cfg.model.start, cfg.loss.free, cfg.model.dirs_begin) == expected


def test_colours_do_not_depend_on_the_direction_before_dirs_begin():
    cfg = load_config(None, ["model.dirs_begin=0.5", "model.grid.n_levels=4", "model.grid.log2_size=10", "model.grid.levels=4"])
    model = build_system(cfg, CPU).model
    rays = make_rays(
        Cameras(torch.eye(3)[None], torch.from_numpy(ring_cameras(1)).float(), 2, 2), torch.zeros(2).long(), torch.rand(2, 2), 1.0
    )
    for progress, same in ((0.2, True), (0.5, True), (0.55, False), (1.0, False)):
        seen = [model.radiance.encode_dirs(d, share=model.dirs_share(progress)) for d in (rays.dirs, -rays.dirs)]
        assert torch.equal(*seen) == same
    assert model.dirs_share(0.6) == pytest.approx(1) and model.dirs_share(0.55) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------ depths of the plane sweep
def wall(spread=(15.0, 39.0)):
    """A wall whose grey levels repeat every 5 pixels and whose hue does not, 2 away, from three cameras in a row.

    spread: of red and blue, whose weights in grey are as 39 to 15: grey does not change. Returns photographs, K, c2w.
    """
    h, w, f, apart = 40, 160, 100.0, 0.2  # a wall 2 away moves by 10 pixels from a photograph to the next
    hue = np.convolve(np.random.default_rng(0).normal(size=w + 44), np.ones(5) / 5, "same")
    hue = np.clip(hue / hue.std(), -2, 2) / 2
    photos = {}
    for i, shift in enumerate((0, -10, 10)):
        x = np.arange(w) + 20 + shift
        grey = 120 + 40 * np.sin(2 * np.pi * x / 5)
        rows = np.stack([grey + spread[0] * hue[x], grey, grey - spread[1] * hue[x]], 1)
        photos[i] = np.ascontiguousarray(np.broadcast_to(rows.round().astype(np.uint8), (h, w, 3)))
    K = np.broadcast_to(np.array([[f, 0, w / 2 - 0.5], [0, f, h / 2 - 0.5], [0, 0, 1]]), (3, 3, 3))
    c2w = np.stack([np.concatenate([np.eye(3), [[x], [0], [-2]]], 1) for x in (0.0, -apart, apart)])
    return photos, K, c2w


def share_right(photos, K, c2w):
    depth = plane_sweep.depth_map(photos, K, c2w, 0, [1, 2], 1.0)[5:-5, 30:-30]
    return float((np.abs(depth - 2) < 0.1).mean())


def test_colours_tell_a_pattern_that_repeats():
    assert share_right(*wall()) > 0.9
    assert share_right(*wall(spread=(0, 0))) < 0.6  # the same wall without its hue


def test_another_exposure_leaves_the_depths_to_the_patterns():
    """Differences in colour are capped, so photographs of half the exposure still agree where their patterns do."""
    photos, K, c2w = wall()
    rng = np.random.default_rng(1)
    texture = cv2.blur(rng.normal(size=(40, 204)), (3, 3))
    texture = 120 + 50 * np.clip(texture / texture.std(), -2, 2) / 2
    for i, shift, gain in ((0, 0, 1.0), (1, -10, 0.5), (2, 10, 0.5)):
        photos[i] = np.repeat((gain * texture[:, 20 + shift :][:, :160]).astype(np.uint8)[..., None], 3, 2)
    assert share_right(photos, K, c2w) > 0.9


def test_pixels_that_need_more_votes_give_fewer_points(scene):
    maps = torch.zeros(len(scene.train), SIDE, SIDE)
    v, u = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    uv = torch.stack([u, v], -1).reshape(-1, 2).float()
    for k, i in enumerate(scene.train):  # the true depths
        rays = make_rays(scene.cameras, torch.full((len(uv),), i), uv, BALL)
        along = rays.dirs @ scene.cameras.c2w[i, :, 2]
        maps[k].view(-1)[:] = torch.where(rays.near < rays.far, rays.near * along, 0)
    chosen = source_views(scene.cameras.c2w, list(scene.train))[0].tolist()
    found = [
        len(plane_sweep._fused(maps, torch.full(maps.shape, n, dtype=torch.uint8), scene.cameras, list(scene.train), chosen, 1.0)[0])
        for n in (1, 3, 99)
    ]
    assert found[0] > found[1] > 0 == found[2]
