"""Rays, the sphere's span, and batches."""

import itertools
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from confs.schema import DatasetConfig
from process_data.edges import edge_colours, scene_edges
from process_data.load import load_scene
from process_data.rays import RayDataset, ray_loader, view_rays
from tests.scenes import write_tiny_scene
from utils.rays import NEAR, sphere_span


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(DatasetConfig(root_dir=str(write_tiny_scene(tmp_path_factory.mktemp("rays") / "scene")), hold_every=4))


def flat(batch) -> list[torch.Tensor]:
    return [batch.rays.origins, batch.rays.dirs, batch.rays.near, batch.rays.far, batch.rgb, batch.mask, batch.view]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(a), flat(b)))


def test_span_by_hand():
    origins = torch.tensor([[0.0, 0, -3], [0, 0, 0], [0, 5, -3], [0, 0, 3], [0, 0.6, -3]])
    near, far = sphere_span(origins, torch.tensor([[0.0, 0, 1]]).expand(5, 3), 1.0)
    torch.testing.assert_close(near, torch.tensor([2.0, NEAR, 1, 1, 2.2]))
    torch.testing.assert_close(far, torch.tensor([4.0, 1, 0, 0, 3.8]))


def test_span_keeps_its_digits_far_away():
    dirs = torch.nn.functional.normalize(torch.tensor([[0.0, 0.004, 1]]), dim=-1)
    origins = -200 * dirs + torch.tensor([[0.5, 0.0, 0]])
    near, far = sphere_span(origins, dirs, 2.0)
    ends = torch.stack([near, far])[:, :, None] * dirs + origins
    torch.testing.assert_close(ends.norm(dim=-1), torch.full((2, 1), 2.0), atol=1e-4, rtol=0)


def test_hits_end_on_the_sphere(scene):
    rays = view_rays(scene.cameras, 1, 0.7)
    hit = rays.near < rays.far
    assert 0 < hit.sum() < len(rays)
    for t in (rays.near, rays.far):
        ends = (rays.origins + t[:, None] * rays.dirs)[hit].norm(dim=-1)
        assert (ends - 0.7).abs().max() < 1e-5


def test_a_batch_is_a_function_of_seed_step_and_count(scene):
    one, two = RayDataset(scene, 1.0, seed=3), RayDataset(scene, 1.0, seed=3)
    torch.manual_seed(0)
    batch = one[5, 64]
    torch.manual_seed(1)
    one[9, 32]
    assert same(batch, two[5, 64])
    assert not torch.equal(batch.rgb, one[6, 64].rgb)
    assert not torch.equal(batch.rgb, RayDataset(scene, 1.0, seed=4)[5, 64].rgb)


def test_a_batch_says_what_the_photograph_says(scene):
    batch = RayDataset(scene, 1.0, seed=0, clean_edges=False)[0, 500]
    assert set(batch.view.tolist()) == set(scene.train)
    for i in scene.train:
        rays, mine = view_rays(scene.cameras, i, 1.0), batch.view == i
        pixel = (batch.rays.dirs[mine] @ rays.dirs.T).argmax(-1)
        torch.testing.assert_close(rays.dirs[pixel], batch.rays.dirs[mine])
        torch.testing.assert_close(batch.rgb[mine], scene.images[i].reshape(-1, 3)[pixel] / 255)
        torch.testing.assert_close(batch.mask[mine], scene.masks[i].reshape(-1)[pixel] / 255)


def test_pixels_at_a_masks_edge_take_the_objects_colour(scene):
    inside = np.zeros((9, 12), np.uint8)
    inside[2:7, 3:9] = 255
    image = np.full((9, 12, 3), 200, np.uint8)
    image[inside == 0] = 10
    mixed = (inside > 0) & (cv2.erode(inside, np.ones((3, 3))) == 0)
    image[mixed] = 90
    index, colour = edge_colours(image, inside)
    assert set(index.tolist()) == set(np.flatnonzero(mixed).tolist()) and (colour == 200).all()
    assert len(edge_colours(image, np.zeros_like(inside))[0]) == 0 == len(edge_colours(image, np.full_like(inside, 255))[0])
    thin = np.zeros_like(inside)
    thin[4] = 255  # all edge: nothing better is known
    assert len(edge_colours(image, thin)[0]) == 0

    pixels = scene.images.reshape(-1, 3)
    index, colour = scene_edges(scene)
    held_out = torch.isin(index // (24 * 32), torch.tensor(scene.test))
    assert len(index) > 50 and (index.diff() > 0).all() and not held_out.any()
    batch, plain = (RayDataset(scene, 1.0, seed=0, clean_edges=c)[0, 4000] for c in (True, False))
    changed = (batch.rgb != plain.rgb).any(1)
    assert 0 < changed.float().mean() < 0.2 and (plain.mask[changed] > 0.5).all() and torch.equal(pixels, scene.images.reshape(-1, 3))
    assert scene_edges(replace(scene, test_background="white")) is None, "an alpha channel's colours are the object's own"


def test_pixels_are_drawn_uniformly(scene):
    drawn = RayDataset(scene, 1.0, seed=0).draw(0, 100_000)
    share = torch.bincount(drawn // (24 * 32), minlength=6) / 100_000
    assert (share - 1 / 6).abs().max() < 0.01


def test_loader_resumes_asks_for_the_count_and_leaves_the_random_state(scene):
    counts = iter([8, 16, 32])
    state = torch.get_rng_state()
    batches = list(itertools.islice(ray_loader(scene, 7, 10, lambda: next(counts), 1.0), 3))
    assert torch.equal(state, torch.get_rng_state())
    assert [len(b.rays) for b in batches] == [8, 16, 32]
    resumed = next(iter(ray_loader(scene, 7, 12, lambda: 32, 1.0)))
    assert same(batches[2], resumed)


def test_no_mask(tmp_path):
    scene = load_scene(DatasetConfig(root_dir=str(write_tiny_scene(tmp_path / "s", masks=False))))
    assert RayDataset(scene, 1.0, seed=0)[0, 4].mask is None


def test_drawing_is_cheap(scene):
    data = RayDataset(scene, 1.0, seed=0)
    times = []
    for step in range(10):
        start = time.perf_counter()
        data[step, 8192]
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25, "8192 rays take a millisecond on idle cores"
