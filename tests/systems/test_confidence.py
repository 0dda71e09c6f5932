"""How sure a vertex is: each cue by hand, what is written, and the words of the advice."""

import json
import logging

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from models.raytrace import MeshTracer
from process_data.load import load_scene
from systems import confidence, visibility
from systems.advice import advice, known_up
from systems.confidence import Cues
from systems.confidence_files import colours, summary, vertex_areas
from systems.export import export_mesh
from tests.benchmarks.confidence import tenths, vertex_confidence
from tests.scenes import AXES
from tests.systems.test_vertex_colour import CPU, looking_at_the_middle
from utils.log import RunFolder
from utils.mesh import load_mesh
from utils.rays import Scene

Z = np.array([0, 0, 1.0])


def scene_of(*centres, images=None, masks=None) -> Scene:
    cameras = looking_at_the_middle(*centres)
    n = len(centres)
    images = torch.zeros(n, 100, 100, 3, dtype=torch.uint8) if images is None else images
    names = tuple(f"IMG_{i}.jpg" for i in range(n))
    return Scene("s", images, masks, cameras, torch.eye(4, dtype=torch.float64), tuple(range(n)), (), names)


def tracer_of(mesh):
    return MeshTracer(torch.as_tensor(np.asarray(mesh.vertices)).float(), torch.as_tensor(np.asarray(mesh.faces)), "torch")


# ------------------------------------------------------------------------------------------------ cues
def test_a_view_sees_what_faces_it_with_nothing_between():
    mesh = trimesh.util.concatenate([trimesh.creation.icosphere(2, 0.3), trimesh.creation.box((0.05, 1, 1), transform=_at(0.8, 0, 0))])
    x, normal = np.array([[0.3, 0, 0], [0, 0, 0.3]]), np.array([[1.0, 0, 0], [0, 0, 1]])
    scene = scene_of((3, 0, 0), (2, 2, 0), (0, 0, 3))
    found = visibility.seen_from(x, normal, scene.cameras, scene.train, tracer_of(mesh))
    assert found[0, 0] == 0 and found[1, 0] == pytest.approx(1.7 / np.hypot(1.7, 2), abs=1e-3)  # behind the box; past it
    assert found[2, 0] == 0 and found[2, 1] == pytest.approx(1, abs=1e-6) and found[:2, 1].max() == 0


def _at(x, y, z):
    return trimesh.transformations.translation_matrix((x, y, z))


@pytest.mark.parametrize(
    ("centres", "expected"),
    [
        ([(1, 0, 1), (-1, 0, 1)], 0.5**0.5),  # H = 0.707 (2 I - diag(1, 0, 1))
        ([(1, 0, 1), (1, 0, 1)], 0),
        ([(0, 0, 1)], 0),
        ([(1, 0, 1), (-1, 0, 1), (0, 1, 1), (0, -1, 1)], 2 * 0.5**0.5),
    ],
)
def test_what_views_tell_of_the_place_along_the_normal(centres, expected):
    scene = scene_of(*[np.array(c) * 2.0 for c in centres])
    cosine = np.array([[Z @ c / np.linalg.norm(c)] for c in np.array(centres, float)], np.float32)
    assert confidence.parallax(np.zeros((1, 3)), Z[None], cosine, scene)[0] == pytest.approx(expected, abs=1e-4)


def test_the_compared_views_face_the_vertex_and_stand_apart():
    turns = np.radians([0, 2, 4, 30, 45, 80])
    scene = scene_of(*[(3 * np.sin(t), 0, 3 * np.cos(t)) for t in turns])
    found = confidence.compared_views(np.zeros((2, 3)), np.stack([np.cos(turns), np.where(turns == 0, 1, 0)], 1).astype(np.float32), scene)
    assert found[0].tolist() == [0, 0] and set(found[1:3, 0]) == {3, 4} and found[1:, 1].tolist() == [-1] * 3


def test_agreement_is_blind_to_exposure_and_neutral_without_texture():
    rng = np.random.default_rng(0)
    one = rng.random((1, 25))
    grey = np.stack([one, 0.5 * one + 0.2, 0.5 * one + 0.2, one]).astype(np.float32)
    assert confidence.agreement(grey)[0] == pytest.approx(1, abs=0.01)
    assert confidence.agreement(np.stack([one, 1 - one]))[0] == pytest.approx(-1, abs=0.01)
    assert confidence.agreement(np.stack([one, one, 1 - one, 1 - one]))[0] < -0.9  # the median, not the mean
    assert confidence.agreement(np.full((4, 1, 25), 0.3))[0] == pytest.approx(0.5)
    assert confidence.agreement(np.stack([one, one * np.nan]))[0] == 0.5 and confidence.agreement(one[None])[0] == 0.5
    assert confidence.agreement(one[None])[1] == pytest.approx(one.std(), rel=1e-6)


def test_patches_lie_where_the_photographs_show_them():
    """Pictures whose grey is the column, 2 a pixel: the patch at the middle, one pixel wide, spans columns 47.5 to 51.5."""
    ramp = (2 * torch.arange(100)).to(torch.uint8)[None, None, :, None].expand(1, 100, 100, 3).contiguous()
    scene = scene_of((0, 0, 3), images=ramp)
    grey = confidence.patches(np.zeros((1, 3)), Z[None], np.array([0.03]), np.array([[0]]), scene)[0, 0] * 255
    assert grey.mean() == pytest.approx(99, abs=0.6) and grey.std() == pytest.approx(2 * 2**0.5, rel=0.15)
    n = 33_000  # more than OpenCV samples at once
    many = confidence.patches(np.zeros((n, 3)), np.tile(Z, (n, 1)), np.full(n, 0.03), np.zeros((1, n), int), scene)[0] * 255
    assert (many == grey).all()


def test_a_crease_is_where_the_solid_rises():
    x, reach = np.array([[0.0, 0, 0]]), np.array([0.1])
    valley = lambda p: (p[:, 2] - p[:, 0].abs()) / 2**0.5  # noqa: E731
    eighth = (2 + 4 * 0.5**0.5) / 8  # mean of |cos| over the eight directions
    turned = confidence.tangents(Z[None])[0][0]
    assert np.abs(turned).max() == 1  # the ring has a point in the valley
    assert confidence.crease(x, Z[None], reach, valley, 1.0, CPU)[0] == pytest.approx(eighth * 0.5**0.5, rel=1e-4)
    assert confidence.crease(x, Z[None], reach, lambda p: p[:, 2], 1.0, CPU)[0] == pytest.approx(0, abs=1e-6)
    assert confidence.crease(x, Z[None], reach, lambda p: p[:, 2] + p[:, 0].abs(), 1.0, CPU)[0] == 0


def test_outlines_are_counted_edge_on():
    masks = torch.zeros(1, 100, 100, dtype=torch.uint8)
    masks[:, :, 50:] = 255  # its edge passes through the middle
    scene = scene_of((0, 0, 3), masks=masks)
    x, across = np.array([[0.0, 0, 0], [0, 0, 0], [0.3, 0.3, 0]]), np.array([[1.0, 0, 0], [0, 0, 1], [1, 0, 0]])
    assert confidence.outlines(x, across, scene).tolist() == [1, 0, 0]
    assert confidence.outlines(x, across, scene_of((0, 0, 3))) is None


def test_a_part_of_the_vertices_speaks_for_the_others():
    mesh = trimesh.creation.icosphere(5, 0.5)
    scene = scene_of((3, 0, 1), (0, 3, 1), (2, 2, 1), (2, 1, 2))
    surface = lambda x: x.norm(dim=1) - 0.5  # noqa: E731
    every = confidence.measure(mesh, surface, scene, 1.0, CPU).confidence
    part = confidence.measure(mesh, surface, scene, 1.0, CPU, pairs=4000).confidence
    assert len(np.unique(part)) <= 1000 < len(part) == len(every) and np.abs(part - every).mean() < 0.05
    far = np.asarray(mesh.vertices) @ [1, 1, 0.5] < -0.4
    assert (
        every[far].max() < 0.05 and every[np.asarray(mesh.vertices) @ [1, 1, 1] > 0.8].min() > 0.4 and 0 <= every.min() <= every.max() <= 1
    )


def test_the_formula():
    cues = made(5, parallax=[0.5, 0, 0.5, 0.5, 0.5], agreement=[1, 1, 0, 1, -1], crease=[0, 0, 0, 0.1, 0.1])
    np.testing.assert_allclose(cues.confidence**2, [1 / 2, 0, 1 / 4, 1 / 4, 1 / 8])
    masked = made(2, parallax=[0.5, 0.5], agreement=[1, 1], outlines=[0, 4])
    np.testing.assert_allclose(masked.confidence**2, [1 / 4, 3 / 8])


# ------------------------------------------------------------------------------------------------ files
class Ellipsoid:
    """A system whose surface is that of tests/scenes.py."""

    view_dependent = False

    def surface(self, progress=1.0):
        return lambda x: ((x / torch.tensor(AXES)).norm(dim=1) - 1) * min(AXES)

    def colours(self, x, progress):
        return torch.full_like(x, 0.5)


def exported(tiny_scene, out, *more):
    words = [
        f"dataset.root_dir={tiny_scene}",
        "dataset.name=dtu",
        "export.resolution=40",
        "export.coarse=20",
        "export.metres_per_unit=0.1",
        *more,
    ]
    cfg = load_config(None, words)
    run = RunFolder(out)
    mesh = export_mesh(Ellipsoid(), load_scene(cfg.dataset), cfg, run, CPU)
    run.close()
    return mesh


def test_an_export_carries_its_confidence(tiny_scene, tmp_path, caplog):
    caplog.set_level(logging.INFO, "neus")
    mesh = exported(tiny_scene, tmp_path)
    back, value = vertex_confidence(tmp_path / "mesh/mesh.ply")
    np.testing.assert_array_equal(value, mesh.vertex_attributes["confidence"])
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-4)
    for loaded in (load_mesh(tmp_path / "mesh/mesh.ply"), trimesh.load(tmp_path / "mesh/mesh.ply", process=False)):
        assert len(loaded.faces) == len(mesh.faces) and loaded.visual.vertex_colors[0].tolist() == [128, 128, 128, 255]
    assert (tmp_path / "mesh/confidence.png").read_bytes()[:4] == b"\x89PNG"
    facts = json.loads((tmp_path / "mesh/confidence.json").read_text())
    assert list(facts) == ["mean", "share_by_views", "share_below_half", "advice"] and 0.2 < facts["mean"] < 0.9
    assert list(facts["share_by_views"]) == ["0", "1", "2", "3+"] and sum(facts["share_by_views"].values()) == pytest.approx(1)
    assert f"advice: {facts['advice'][0]}" in caplog.text and "confidence: mean" in caplog.text
    below = (np.asarray(mesh.vertices) - np.asarray(mesh.vertices).mean(0))[:, 2] < -0.3 * 3
    assert value[below].mean() < 0.6 * value[~below].mean()  # the ring of cameras looks from above


def test_without_confidence_nothing_of_it_is_written(tiny_scene, tmp_path):
    mesh = exported(tiny_scene, tmp_path, "export.confidence=false")
    assert not mesh.vertex_attributes and b"confidence" not in (tmp_path / "mesh/mesh.ply").read_bytes()[:2000]
    assert not list((tmp_path / "mesh").glob("confidence*"))


def test_the_summary_is_weighted_by_area():
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5]], [[0, 1, 2]], process=False)
    area = vertex_areas(mesh)
    np.testing.assert_allclose(area, [1 / 6, 1 / 6, 1 / 6, 0])
    cues = made(4, views=[0, 1, 5, 2], parallax=[0, 0, 0.5, 0.5], agreement=[1, 1, 1, 1])
    found = summary(cues, area)
    assert found["mean"] == pytest.approx(0.5**0.5 / 3) and found["share_below_half"] == pytest.approx(2 / 3)
    assert found["share_by_views"] == pytest.approx({"0": 1 / 3, "1": 1 / 3, "2": 0, "3+": 1 / 3})


def test_colours_run_from_dark_to_light():
    light = colours(np.linspace(0, 1, 20)).astype(float) @ [0.21, 0.72, 0.07]
    assert (np.diff(light) > 0).all() and colours(np.array([[0.5]])).shape == (1, 1, 3)


# ------------------------------------------------------------------------------------------------ words
def made(n, normal=None, **more) -> Cues:
    """Cues of n vertices of which all is well, but for what is given."""
    well = {
        "views": np.full(n, 9),
        "facing": np.ones(n),
        "parallax": np.full(n, 9.0),
        "agreement": np.full(n, 0.9),
        "texture": np.full(n, 0.2),
    }
    given = {k: np.asarray(v) for k, v in more.items()}
    return Cues(**{**well, "crease": np.zeros(n), "outlines": None, "normal": np.tile(Z, (n, 1)) if normal is None else normal, **given})


def ball(bad, **values) -> tuple[Cues, np.ndarray]:
    """(cues of a ball whose vertices where bad(normal) have the values given; its normals)."""
    n = np.asarray(trimesh.creation.icosphere(4, 1.0).vertices)
    at = bad(n)
    well = made(len(n))
    return made(len(n), n, **{k: np.where(at, v, getattr(well, k)) for k, v in values.items()}), n


def told(cues, n, scene, up):
    return advice(cues, np.ones(len(n)), 0.5 * n, np.zeros(len(n), bool), scene, up)


AROUND = [(3 * np.cos(t), 3 * np.sin(t), 1) for t in np.radians([0, 60, 120, 180])]


def test_the_underside_and_the_sides_by_their_cameras():
    scene = scene_of(*AROUND)
    unseen = {"views": 0, "parallax": 0.0}
    (line,) = told(*ball(lambda n: n[:, 2] < -0.7, **unseen), scene, Z)
    assert line.startswith("the underside (15% of the surface) was seen by no view: photograph it from below")
    (line,) = told(*ball(lambda n: n[:, 2] < -0.7, views=1, parallax=0.0), scene, Z)
    assert "seen by one view at most" in line
    (line,) = told(*ball(lambda n: n @ [0, -1, 0] > 0.7, **unseen), scene, Z)
    assert line.startswith("the left side, seen from the camera of IMG_0.jpg (") or line.startswith(
        "the right side, seen from the camera of IMG_3.jpg ("
    )
    side = np.array([np.cos(np.radians(30)), np.sin(np.radians(30)), 0])
    (line,) = told(*ball(lambda n: n @ side > 0.8, facing=0.3, parallax=0.1), scene_of(AROUND[0], AROUND[1]), Z)
    assert "camera of IMG_" in line and "at grazing angles only" in line
    apart = scene_of((3, 0, 1), (0, 3, 1))
    side = np.array([0.5**0.5, 0.5**0.5, 0])
    (line,) = told(*ball(lambda n: n @ side > 0.8, facing=0.3, parallax=0.1), apart, Z)
    assert "the side between the cameras of IMG_" in line and "IMG_0.jpg" in line and "IMG_1.jpg" in line
    (line,) = told(*ball(lambda n: n @ side > 0.8, agreement=-0.5, crease=0.2), apart, None)
    assert "the photographs disagree there" in line and "the side between the cameras" in line
    (line,) = told(*ball(lambda n: n @ [1, 0, 0] > 0.8, parallax=0.1), scene, None)
    assert "the side facing the camera of IMG_0.jpg" in line and "from nearly one direction" in line


def test_no_word_on_little_things_and_a_good_one_when_all_is_well():
    scene = scene_of(*AROUND)
    (line,) = told(*ball(lambda n: n[:, 2] < -0.97, views=0, parallax=0.0), scene, Z)
    assert line.startswith("the photographs cover the object well: 99% of")
    (line,) = told(*ball(lambda n: n[:, 2] < 0.5, crease=1.0), scene, Z)
    assert line.startswith("no part stands out")
    many, n = ball(lambda n: np.abs(n).max(1) > 0.8, views=0, parallax=0.0)
    assert len(told(many, n, scene, Z)) == 3


def test_the_edge_of_the_sphere_is_told_apart():
    cues, n = ball(lambda n: n[:, 2] < -0.7, views=0, parallax=0.0)
    lines = advice(cues, np.ones(len(n)), n, (cues.views == 0), scene_of(*AROUND), Z)
    assert "edge of the region of interest" in lines[0] and "cover the object well: 100%" in lines[1] and len(lines) == 2


def test_up_is_unknown_where_cameras_are_turned_all_ways(tiny_scene):
    cfg = load_config(None, [f"dataset.root_dir={tiny_scene}", "dataset.name=dtu"])
    scene = load_scene(cfg.dataset)
    assert known_up(scene, cfg) @ Z > 0.98
    scene.cameras.c2w[::2, :, :2] *= -1
    assert known_up(scene, cfg) is None
    given = load_config(None, [f"dataset.root_dir={tiny_scene}", "dataset.name=dtu", "dataset.up=given"])
    np.testing.assert_allclose(known_up(scene, given), Z, atol=1e-12)


def test_the_benchmark_by_hand():
    means, ratio = tenths(np.arange(20)[::-1] / 20, np.arange(20.0))
    assert means.tolist() == [18.5, 16.5, 14.5, 12.5, 10.5, 8.5, 6.5, 4.5, 2.5, 0.5] and ratio == pytest.approx(18.5 / 4.5)
