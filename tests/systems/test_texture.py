"""A textured mesh of a scene in closed form: the photographs' colours, where they belong; what is hidden, wrong or unseen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from models.appearance import Appearance
from models.raytrace import MeshTracer
from process_data.load import load_scene
from systems import texture_blend, texture_views
from systems.metrics import psnr
from systems.run import execute
from systems.texture import divided, finer, write_textured
from systems.texture_blend import Texels, agreement
from systems.texture_views import common_exposure, depth_edges, look, photograph
from tests.benchmarks.textured import painted_meshes, read_glb
from tests.scenes import AXES, write_tiny_scene
from tests.systems.test_family import tiny_job
from tests.systems.test_train import ROOT
from utils.log import RunFolder
from utils.stack import Stack

CPU = torch.device("cpu")
MAGENTA = (1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_scene(tmp_path_factory.mktemp("texture") / "scene", 12, (96, 128))


@pytest.fixture(scope="module")
def scene(folder):
    return load_scene(config(folder).dataset, 1.0)


def config(folder, *more):
    return load_config(
        ROOT / "confs/dtu-wmask.yaml", [f"dataset.root_dir={folder}", "dataset.hold_every=4", "export.texture_size=256", *more]
    )


def untrained(appearance=None):
    """A system whose field is magenta."""
    colours = lambda x, progress=1.0: torch.tensor(MAGENTA).expand(len(x), 3).clone()  # noqa: E731
    return SimpleNamespace(model=SimpleNamespace(appearance=appearance), view_dependent=False, colours=colours)


def ellipsoid(scene, rounds=4):
    """The true surface, in the world."""
    ball = trimesh.creation.icosphere(rounds)
    local = np.asarray(ball.vertices) * AXES
    to_world = scene.to_world.numpy()
    return trimesh.Trimesh(local @ to_world[:3, :3].T + to_world[:3, 3], ball.faces, process=False)


def textured(scene, folder, tmp_path, *more, system=None, rounds=4):
    """(the textured mesh's render of every held-out view against the photograph, dB inside the mask; its render and share of the first)."""
    cfg = config(folder, *more)
    paths = write_textured(ellipsoid(scene, rounds), system or untrained(), scene, cfg, RunFolder(tmp_path), CPU)
    assert all(path.stat().st_size > 60 for path in paths)
    mesh = painted_meshes(tmp_path / "mesh", scene)["textured"]
    found = [mesh.render(scene.cameras, view, 1.0, torch.zeros(3)) for view in scene.test]
    inner = [(cover > 0.99).float() for _, cover in found]
    return [psnr(rgb, scene.image(v).float() / 255, m) for (rgb, _), v, m in zip(found, scene.test, inner)], found[0]


def test_held_out_views_are_met(scene, folder, tmp_path):
    figures, _ = textured(scene, folder, tmp_path)
    assert min(figures) > 33, figures
    points, faces, uv, picture, extras = read_glb(tmp_path / "mesh/mesh.glb")
    assert picture.shape == (256, 256, 3) and len(faces) == 5120 and extras["units"] == "world"
    assert np.allclose((points.min(0) + points.max(0)) / 2, (10, -20, 30), atol=0.01)  # in the world, y turned back
    assert (uv >= 0).all() and (uv <= 1).all()


def test_a_coarse_mesh_is_textured_too(scene, folder, tmp_path):
    figures, _ = textured(scene, folder, tmp_path, rounds=2)
    assert min(figures) > 24, figures


def test_photographs_on_disk_are_looked_at_one_by_one(scene, folder, tmp_path):
    """The texture is the same; scene.on_disk alone decides."""
    cfg, pictures = config(folder), []
    for name, of in (("memory", scene), ("disk", replace(scene, on_disk=(Stack((1, 1, 1)),)))):
        write_textured(ellipsoid(scene, 2), untrained(), of, cfg, RunFolder(tmp_path / name), CPU)
        pictures.append((tmp_path / name / "mesh/textured.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_the_field_colours_the_texture_where_it_is_asked_to(scene, folder, tmp_path):
    _, (rgb, cover) = textured(scene, folder, tmp_path, "export.texture_from=field")
    assert torch.allclose(rgb[cover > 0.99], torch.tensor(MAGENTA), atol=0.01)


def test_exposures_are_undone(scene, folder, tmp_path):
    """Photographs of different exposures, which the model knows: the texture is that of the common one."""
    n, gain = len(scene.images), torch.linspace(-0.3, 0.3, len(scene.train))
    model = Appearance("affine", n, scene.train)
    with torch.no_grad():
        for g, view in zip(gain - gain.mean(), scene.train):
            model.values[view, [0, 4, 8]] = g
    images = scene.images.clone()
    for view in scene.train:
        seen = model.photographed(images[view].float().reshape(-1, 3) / 255 * 0.7, 1.0, torch.full((images[view].numel() // 3,), view))
        images[view] = (255 * seen.clamp(0, 1)).round().to(torch.uint8).view(images[view].shape)
    for view in scene.test:
        images[view] = (images[view].float() * 0.7).round().to(torch.uint8)
    figures, _ = textured(replace(scene, images=images), folder, tmp_path, system=untrained(model))
    assert min(figures) > 33, figures


def test_what_one_photograph_alone_shows_is_left_out(scene, folder, tmp_path, monkeypatch):
    images, view = scene.images.clone(), scene.train[0]
    images[view, 38:58, 54:74] = torch.tensor([255, 0, 0], dtype=torch.uint8)  # something has passed before the camera
    spoilt = replace(scene, images=images)
    figures, _ = textured(spoilt, folder, tmp_path)
    monkeypatch.setattr(texture_blend, "agreement", lambda colour: torch.ones(colour.shape[:2]))
    trusting, _ = textured(spoilt, folder, tmp_path)
    assert min(figures) > 29 and min(figures) > min(trusting) + 4, (figures, trusting)


def test_the_edge_of_the_mask_is_not_painted(scene, folder, tmp_path, monkeypatch):
    """White rims of photographs, one pixel inside the mask, do not reach the texture."""
    images = scene.images.clone()
    for view in scene.train:
        mask = scene.mask(view).numpy() > 127
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        images[view][torch.from_numpy(mask & ~inner)] = 255
    rimmed = replace(scene, images=images)
    figures, _ = textured(rimmed, folder, tmp_path)
    monkeypatch.setattr(texture_views, "_ramp", lambda distance: (distance > 0).astype(np.float32))
    careless, _ = textured(rimmed, folder, tmp_path)
    assert min(figures) > 31 and np.mean(figures) > np.mean(careless) + 0.5, (figures, careless)


def test_unseen_parts_continue_what_is_around_them(scene, folder, tmp_path):
    """Cameras on one side: the other is neither the field's magenta, which no photograph taught, nor black."""
    side = scene.cameras.c2w[:, 0, 3] > 0.5
    half = replace(
        scene, train=tuple(v for v in scene.train if side[v]), test=tuple(v for v in range(len(side)) if scene.cameras.c2w[v, 0, 3] < -2)
    )
    _, (rgb, cover) = textured(half, folder, tmp_path)
    back = rgb[cover > 0.99]
    shown = torch.cat([half.image(v)[half.mask(v) > 200] for v in half.train]).float() / 255
    assert (back.mean(0) - shown.mean(0)).abs().max() < 0.1
    assert ((back - rgb.new_tensor(MAGENTA)).norm(dim=1) > 0.4).all() and back.mean(1).min() > 0.02


def test_what_lies_behind_something_is_not_in_sight(scene, folder):
    """A plate between a camera and the ball: the camera sees the plate, and the ball beside it."""
    view = scene.train[0]
    eye, forward, right = (scene.cameras.c2w[view, :, k].numpy() for k in (3, 2, 0))
    ball, plate = trimesh.creation.icosphere(4, 0.4), trimesh.creation.box((0.2, 0.2, 0.02))
    frame = np.eye(4)
    frame[:3, :3], frame[:3, 3] = scene.cameras.c2w[view, :, :3].numpy(), -0.8 * forward
    plate.apply_transform(frame)
    mesh = trimesh.util.concatenate([ball, plate])
    tracer = MeshTracer(torch.tensor(mesh.vertices, dtype=torch.float32), torch.tensor(mesh.faces))
    bare = replace(scene, masks=None)
    photo = photograph(untrained(), bare, config(folder), scene.cameras, view, tracer, CPU)
    x = np.stack([-0.4 * forward, -0.81 * forward, 0.25 * right - 0.31 * forward, 0.4 * forward, eye - forward])
    found, seen = look(photo, photo.layers(1.0), torch.tensor(x, dtype=torch.float32))
    assert seen.tolist() == [False, True, True, False, False]
    assert found[1, 6] > 0.9 and found[1, 7] == pytest.approx(np.linalg.norm(eye) - 0.81, abs=0.01)
    beside, _ = look(photo, photo.layers(1.0), torch.tensor((-0.81 * forward + 0.099 * right)[None], dtype=torch.float32))
    assert beside[0, 6] < 0.2  # at the edge of the plate


def test_agreement_by_hand():
    grey = torch.full((2, 4, 3), 0.5)
    grey[0, 3] = torch.tensor([1.0, 0.5, 0.5])
    grey[1, 1:] = torch.nan
    found = agreement(grey)
    assert found[0, :3].tolist() == [1, 1, 1] and found[0, 3] == pytest.approx(1 / (1 + (0.5 / 0.06) ** 4))
    assert found[1].tolist() == [1, 1, 1, 1]  # one view: nobody to disagree with


def test_edges_of_depth_by_hand():
    depth = np.full((4, 6), 2.0)
    depth[:, 3:] = 2.5  # a step of half a unit; a pixel's footprint is 0.02
    slope = 2 + 0.1 * np.arange(6)[None].repeat(4, 0)  # five footprints a pixel: steep, but a surface
    assert depth_edges(depth, 100.0)[0].tolist() == [False, False, True, True, False, False]
    assert not depth_edges(slope, 100.0).any()
    depth[:, 3:] = np.inf
    assert depth_edges(depth, 100.0)[0].tolist() == [False, False, True, True, False, False]


def test_the_common_exposure_inverts_the_photographs():
    model = Appearance("affine", 3, (0, 1))
    with torch.no_grad():
        model.values.copy_(0.1 * torch.randn(3, 12))
    rgb = torch.rand(7, 3)
    seen = model.photographed(rgb, 1.0, torch.full((7,), 1))
    m = common_exposure(model, 1, CPU)
    assert torch.allclose(seen @ m[:3] + m[3], rgb, atol=1e-5) and not torch.allclose(seen, rgb, atol=0.01)
    assert (common_exposure(None, 0, CPU) == torch.eye(4, 3)).all()


def test_dividing_faces_moves_no_texel():
    ball = trimesh.creation.icosphere(1)
    x, faces = torch.tensor(np.asarray(ball.vertices), dtype=torch.float32), torch.tensor(np.asarray(ball.faces))
    on = Texels(torch.randint(len(faces), (500,)), torch.distributions.Dirichlet(torch.ones(3)).sample((500,)))
    before = on.of(x, faces, torch.arange(500))
    fine = divided(x, faces, 2)
    assert len(fine.faces) == 16 * len(faces) and len(fine.x) == 10 * 4**3 + 2
    child = finer(on, 2)
    assert torch.allclose(child.of(fine.x, fine.faces, torch.arange(500)), before, atol=1e-5)
    assert (child.weights > -1e-5).all() and (child.face // 16 == on.face).all()


@pytest.mark.slow
def test_a_run_writes_its_textured_mesh(tiny_scene, tmp_path):
    job = tiny_job("dtu-wmask", tiny_scene, tmp_path, "trainer.max_steps=4", "export.texture=true", "export.texture_size=128")
    assert execute(job, True, False, False) == 0
    points, faces, _, picture, _ = read_glb(tmp_path / "n/t/mesh/mesh.glb")
    whole = trimesh.load(tmp_path / "n/t/mesh/mesh.ply", process=False)
    assert picture.shape == (128, 128, 3) and len(faces) == len(whole.faces)
    assert np.allclose([points.min(0), points.max(0)], whole.bounds, atol=1e-4)
    assert (tmp_path / "n/t/mesh/textured.obj").is_file() and (tmp_path / "n/t/mesh/textured.png").is_file()
