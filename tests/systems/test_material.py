"""NeRO's second stage on a tiny scene whose material is known: it recovers, exports, resumes and is relit."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import trimesh

from confs.load import load_config
from process_data.load import load_scene
from process_data.poses import read_poses
from systems.build import build_system
from systems.material import change
from systems.relight import folder_name
from systems.run import Job, execute, prepare, relit
from tests.benchmarks.material import judge, psnr
from tests.material_scenes import TrueField, write_material_scene
from tests.systems.test_train import ROOT, tiny_words, trainer, weights
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.hdr import read_light, write_hdr
from utils.image import read_raster, write_png

pytestmark = pytest.mark.slow

SMALL = [
    "model.material.n_diffuse=12", "model.material.n_specular=12", "model.material.n_light=8", "model.material.n_diffuse_test=16", "model.material.n_specular_test=16", "model.material.n_light_test=8",
    "model.material.light_height=16", "model.material.hidden=32", "trainer.n_rays=1024", "trainer.max_rays=1024", "trainer.target_samples=16384",
    "relight.texture=128", "relight.width=24", "relight.height=24", "relight.frames=2", "relight.samples=8", "name=n", "trainer.trial_name=t",
]  # fmt: skip


def test_change_is_bounded_by_edges_and_weighs_the_roughness():
    a = torch.full((4, 5), 0.5)
    assert float(change(a, a, 0.2)) == 0
    albedo, rough = a.clone(), a.clone()
    albedo[:, :3] += 0.1
    rough[:, 3] += 0.2
    square = 0.03 / ((0.5**2 + 0.6**2) / 0.5)  # over the mean square, in that of 0.5
    assert torch.allclose(change(a, albedo, 0.2), torch.tensor(square / (square + 0.04) / 3))
    dark = torch.tensor([0.1, 0.1, 0.1, 1, 1])
    assert torch.allclose(change(a * dark, albedo * dark, 0.2), change(a, albedo, 0.2))  # darker is no smoother
    assert torch.allclose(change(a, rough, 0.2, 0.1), torch.tensor(0.1 * 0.5 / 3)) and float(change(a, rough, 0.2, 0.0)) == 0
    other = rough.clone()
    other[:, 4] -= 0.5  # metal and paint: that they differ in roughness too costs little
    assert 0 < float(change(a, other, 0.2) - change(a, other, 0.2, 0.0)) < 0.2 * 0.5 / 3
    edge = a.clone()
    edge[0] = 1.0
    assert 0.1 < float(change(a, edge, 0.2)) < 0.25  # one point of four: at most a quarter, however high the edge


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_material_scene(tmp_path_factory.mktemp("material") / "scene")


def config(scene, out, *more):
    words = [
        *tiny_words("material"),
        f"dataset.root_dir={scene}",
        f"trainer.outputs_dir={out}",
        "dataset.name=dtu",
        f"model.mesh={scene / 'ball.ply'}",
        *SMALL,
    ]
    return load_config(ROOT / "confs/nero-material.yaml", [*words, *more])


def job(scene, out, *more):
    return Job(config(scene, out, *more), lambda **facts: config(scene, out, *more))


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory):
    """A run folder: trained for a while, tested, exported."""
    out = tmp_path_factory.mktemp("runs")
    # too short for priors; its lamps are soft: without light_smooth, sharp ones on rougher metal explain the pictures as well
    more = [
        "trainer.max_steps=250",
        "model.grid.levels=4",
        "model.material.smooth=0.02",
        "model.material.binary=0",
        "model.material.light_smooth=0.1",
    ]
    assert execute(job(scene, out, *more), True, False, False) == 0
    return out / "n/t"


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    path = tmp_path_factory.mktemp("lights") / "lamp.hdr"
    image = np.full((16, 32, 3), 0.2, np.float32)
    image[4:6, 10:13] = 30.0
    write_hdr(path, image)
    return path


def restored(run):
    from systems.build import restore_system

    found = prepare(None, str(run), [])
    model = restore_system(found.cfg, torch.device("cpu"), found.state, found.path).model
    model.set_frame()
    return model


# ------------------------------------------------------------------ recovery


def test_the_material_is_recovered_better_than_by_a_constant(run):
    model = restored(run)
    with torch.no_grad():
        ours, truth = model.material_at(model.local), TrueField()(model.local)
    scale = (ours.albedo * truth.albedo).sum(0) / (ours.albedo**2).sum(0)
    constant = psnr((truth.albedo - truth.albedo.mean(0)).numpy())
    assert psnr((ours.albedo * scale - truth.albedo).numpy()) > constant + 3
    metal = truth.metallic > 0.5
    assert float(((ours.metallic > 0.5) == metal).float().mean()) > 0.85
    assert float(ours.roughness[~metal].mean() - ours.roughness[metal].mean()) > 0.1
    assert float((ours.roughness - truth.roughness)[metal].abs().mean()) < 0.15  # the roughness of matt paint converges in longer runs only


def test_the_metrics_and_pictures_are_there(run):
    assert json.loads((run / "test/metrics.json").read_text())["psnr_masked"] > 18
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 5 and rows[-1]["skipped"] == 0
    assert {"loss/rgb_charbonnier", "loss/smooth", "loss/neutral", "loss/light_smooth"} <= rows[-1].keys()
    assert (run / "video.mp4").is_file() or (run / "video.gif").is_file()


def test_resuming_is_bitwise_equal(scene, tmp_path):
    cfg = config(scene, tmp_path, "trainer.max_steps=12", "trainer.save_every=6")
    whole = trainer(cfg, tmp_path / "whole")
    real, kept = whole.save, []
    whole.save = lambda: kept.append(load_checkpoint(real()))
    whole.train()
    second = trainer(cfg, tmp_path / "parts")
    second.load(kept[0], tmp_path / "parts/ckpt/last.pt")
    assert second.clock.step == 6
    second.train()
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["model.material.light=mlp", "model.material.light_hidden=16"], ["model.material.n_light=0", "model.material.n_light_test=0"], ["model.material.light=mlp", "model.material.light_hidden=16", "model.material.light_sphere=true"],
        ["model.material.photographer=true", "model.material.light_hidden=16"], ["model.encoding=frequency", "model.frequency.n_frequencies=8"], ["model.material.smooth_normals=2"],
        ["model.material.smooth=0", "model.material.neutral=0", "model.material.light_smooth=0"], ["loss.rgb=1", "loss.rgb_charbonnier=0"], ["dataset.apply_mask=false"],
    ],
)  # fmt: skip
def test_each_option_trains(more, scene, tmp_path):
    t = trainer(config(scene, tmp_path, "trainer.max_steps=4", "trainer.log_every=1", *more), tmp_path / "run")
    assert t.train() and t.skipped == 0


def test_every_weight_is_reached(scene, tmp_path):
    t = trainer(
        config(scene, tmp_path, "model.material.light=mlp", "model.material.light_hidden=16", "model.material.photographer=true"),
        tmp_path / "run",
    )
    t.batches = t._batches()
    torch.stack(list(t.system.losses(next(t.batches), 0.5).values())).sum().backward()
    without = [name for name, p in t.system.model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert [n for n in without if not n.startswith("inner")] == []  # a ball does not light itself


def test_the_mesh_may_be_a_run_folder(scene, tmp_path):
    (tmp_path / "shape/mesh").mkdir(parents=True)
    (tmp_path / "shape/mesh/mesh.ply").write_bytes((scene / "ball.ply").read_bytes())
    system = build_system(config(scene, tmp_path, f"model.mesh={tmp_path / 'shape'}"), torch.device("cpu"))
    assert len(system.model.vertices) == 2562


# ------------------------------------------------------------------ files


def test_the_gltf_opens_with_its_textures(run):
    loaded = trimesh.load(run / "material/mesh.glb")
    mesh = next(iter(loaded.geometry.values()))
    material = mesh.visual.material
    assert material.baseColorTexture.size == material.metallicRoughnessTexture.size and material.baseColorTexture.size[0] >= 128
    assert material.metallicFactor == 1 and material.roughnessFactor == 1
    assert mesh.visual.uv.shape == (len(mesh.vertices), 2) and mesh.visual.uv.min() >= 0 and mesh.visual.uv.max() <= 1
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 0.6, atol=1e-3)
    # the texture equals the field at each vertex; glTF has y up
    world = np.asarray(mesh.vertices)[:, [0, 2, 1]] * [1, -1, 1]
    with torch.no_grad():
        field = restored(run).material_at(torch.tensor(world).float())
    texture = np.asarray(material.metallicRoughnessTexture)
    size = texture.shape[0]
    at = np.clip((mesh.visual.uv * size - 0.5).round().astype(int), 0, size - 1)
    texel = texture[size - 1 - at[:, 1], at[:, 0]] / 255.0
    assert np.abs(texel[:, 1] - field.roughness.numpy()).mean() < 0.02 and np.abs(texel[:, 2] - field.metallic.numpy()).mean() < 0.03


def test_arrays_for_each_vertex_and_the_light(run):
    arrays = {name: np.load(run / f"material/{name}.npy") for name in ("albedo", "roughness", "metallic")}
    assert [a.shape for a in arrays.values()] == [(2562, 3), (2562, 1), (2562, 1)]
    assert all(a.dtype == np.float32 and a.min() >= 0 and a.max() <= 1 for a in arrays.values())
    nero = np.load(run / "material/nero/roughness.npy")
    assert (nero >= arrays["roughness"]).all() and nero.max() <= 1
    image = read_light(run / "material/light.hdr")
    assert image.shape == (256, 512, 3) and image.std() > 0.05
    assert (run / "mesh/mesh.ply").stat().st_size > 1000


@pytest.mark.parametrize("n", [1, 2, 5, 320])
def test_patches_do_not_bleed(n):
    """Between the corners of a face bilinear lookup uses no texel of another face's patch."""
    from utils.atlas import patches, spread, texels

    atlas = patches(np.arange(3 * n).reshape(n, 3), 64)
    index, face, weights_ = texels(atlas)
    assert set(face) == set(range(n)) and np.allclose(weights_.sum(1), 1)
    image = spread(face[:, None].astype(float), index, atlas.size)[..., 0]
    for f in range(n):
        inside = np.random.default_rng(f).dirichlet([1, 1, 1], 50) @ atlas.uv[atlas.faces[f]]
        x, y = inside[:, 0] * atlas.size - 0.5, atlas.size - 1 - (inside[:, 1] * atlas.size - 0.5)
        for dx in (0, 1):
            for dy in (0, 1):
                column, row = np.floor(x + 1e-9).astype(int) + dx, np.floor(y + 1e-9).astype(int) + dy
                weight = np.abs(1 - dx - (x - np.floor(x + 1e-9))) * np.abs(1 - dy - (y - np.floor(y + 1e-9)))
                used = (weight > 1e-6) & (column < atlas.size) & (row < atlas.size)
                assert (image[row[used], column[used]] == f).all()


# ------------------------------------------------------------------ relighting


def test_the_embedded_renderer_writes_pictures_and_a_film(run, light, caplog):
    with caplog.at_level("INFO", "neus"):
        assert relit(str(run), ["relight.engine=embedded"], str(light), None, None) == 0
    assert "embedded renderer" in caplog.text
    pictures = [read_raster(run / f"relight/lamp/{i:03d}.png") for i in range(2)]
    assert all(p.shape == (24, 24, 4) and p[..., 3].max() == 255 and p[0, 0, 3] == 0 for p in pictures)
    assert (run / "relight/lamp.mp4").is_file() or (run / "relight/lamp.gif").is_file()
    inside = pictures[0][..., 3] == 255
    assert relit(str(run), ["relight.engine=embedded", "relight.transparent=false", "relight.strength=0.1"], str(light), None, None) == 0
    again = read_raster(run / "relight/lamp/000.png")
    assert again[..., 3].min() == 255 and again[inside][:, :3].mean() < pictures[0][inside][:, :3].mean()


def write_poses(path, n=2):
    frames = [
        {"file_path": f"./p{i}", "transform_matrix": [[1, 0, 0, 0], [0, 0, -1, -3 - i], [0, 1, 0, 0], [0, 0, 0, 1]]} for i in range(n)
    ]
    path.write_text(json.dumps({"camera_angle_x": 0.6, "w": 20, "h": 16, "frames": frames}))
    return path


def test_given_cameras_are_rendered(run, light, tmp_path):
    poses = write_poses(tmp_path / "poses.json")
    assert relit(str(run), ["relight.engine=embedded"], str(light), None, str(poses)) == 0
    near, far = (read_raster(run / f"relight/lamp/p{i}.png") for i in range(2))
    assert near.shape == (16, 20, 4) and (near[..., 3] > 0).sum() > (far[..., 3] > 0).sum() > 0


def test_the_benchmark_judges_what_it_is_given(run, tmp_path):
    view = {
        "name": "000",
        "albedo": torch.rand(9, 9, 3) / 2,
        "roughness": torch.rand(9, 9),
        "metallic": torch.ones(9, 9),
        "hit": torch.ones(9, 9) > 0,
    }
    view["metallic"][:4] = 0
    for key in ("albedo", "roughness", "metallic"):
        value = view[key] * (2 if key == "albedo" else 1)
        value = value if value.ndim == 3 else value[..., None].expand(-1, -1, 3)
        write_png(tmp_path / f"truth_{key}/000.png", torch.cat([value, torch.ones(9, 9, 1)], -1))
    result = judge([view], tmp_path, None)
    assert result["albedo_psnr"] > 45 and result["scale"] == pytest.approx([2, 2, 2], rel=0.01)
    assert result["roughness_mae"] < 0.003 and result["metallic_accuracy"] == 1


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed")
def test_blender_and_the_embedded_renderer_agree(run, light, tmp_path):
    poses, found = write_poses(tmp_path / "poses.json", 1), []
    for engine in ("embedded", "blender"):
        words = [f"relight.engine={engine}", "relight.samples=256", "relight.texture=512", "relight.device=cpu"]
        assert relit(str(run), words, str(light), None, str(poses)) == 0
        found.append(read_raster(run / "relight/lamp/p0.png").astype(float) / 255)
    inside = (found[0][..., 3] > 0.99) & (found[1][..., 3] > 0.99)
    assert inside.sum() > 20 and psnr(found[0][inside] - found[1][inside]) > 25


# ------------------------------------------------------------------ what goes wrong, in a sentence


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.mesh=null", "model.mesh is missing"), ("model.mesh=/nowhere/mesh.ply", "no such mesh file"), ("model.mesh=.", "a folder without mesh/mesh.ply"),
        ("model.mesh=pyproject.toml", "not a kind of mesh"),
    ],
)  # fmt: skip
def test_a_bad_mesh_is_named(word, message, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        build_system(config(scene, tmp_path, word), torch.device("cpu"))


def test_a_mesh_of_another_scene_is_refused(scene, tmp_path):
    mesh = trimesh.creation.icosphere(1)
    mesh.vertices = np.asarray(mesh.vertices) + 40
    mesh.export(tmp_path / "far.ply")
    cfg = config(scene, tmp_path, f"model.mesh={tmp_path / 'far.ply'}")
    with pytest.raises(UserError, match="is it of this scene"):
        build_system(cfg, torch.device("cpu")).prepare(load_scene(cfg.dataset))


@pytest.mark.parametrize(
    "word",
    ["model.material.n_diffuse=0", "model.material.n_light=-1", "model.material.roughness_init=1", "model.material.smooth=-1", "model.material.light=sun", "relight.samples=0", "relight.distance=1", "relight.engine=maya", "relight.texture=4"],
)  # fmt: skip
def test_bad_options_are_named(word):
    with pytest.raises(UserError, match=word.partition("=")[0].replace(".", r"\.")):
        load_config(ROOT / "confs/nero-material.yaml", [word])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "neither a Radiance"), (b"\x89PNG\r\n\x1a\n", "neither a Radiance"), (b"#?RADIANCE\nbroken", "truncated"), (b"v/1\x01\x02\0\0\0", "truncated")],
)  # fmt: skip
def test_a_bad_light_is_named(content, message, run, tmp_path):
    path = tmp_path / "light.hdr"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        relit(str(run), [], str(path), None, None)


def test_a_black_light_is_refused(run, tmp_path):
    write_hdr(tmp_path / "black.hdr", np.zeros((4, 8, 3), np.float32))
    with pytest.raises(UserError, match="black"):
        relit(str(run), [], str(tmp_path / "black.hdr"), None, None)


def test_a_blender_that_is_none_is_named(run, light, tmp_path):
    with pytest.raises(UserError, match="no such program"):
        relit(str(run), [], str(light), str(tmp_path / "blender"), None)
    for name, script, message in (
        ("quiet", "exit 0", "left 2 of 2 pictures out"),
        ("broken", "echo Error: no GPU >&2; exit 9", "exit code 9: Error: no GPU"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        with pytest.raises(UserError, match=message):
            relit(str(run), [], str(light), str(tmp_path / name), None)


@pytest.mark.parametrize(("name", "folder"), [("lamp.exr", "lamp"), ("...hdr", "light"), (".hdr", ".hdr"), ("x" * 240 + ".hdr", "x" * 50)])
def test_a_folder_of_pictures_is_named_by_the_light(name, folder):
    """Regression: "...hdr" led out of relight/, and a long name left no room for that of the video."""
    assert folder_name(f"lights/{name}") == folder


@pytest.mark.parametrize(
    ("given", "names"),
    [(["a/1.png", "b/2"], ["1", "2"]), (["a", "b/a"], ["000", "001"]), (["a\0b", "c"], ["000", "001"]), (["x" * 300, "c"], ["000", "001"])],
)
def test_cameras_have_names_that_files_may_have(given, names, tmp_path):
    """Regression: a NUL or 300 characters were tracebacks."""
    frames = [{"file_path": name, "transform_matrix": np.eye(4).tolist()} for name in given]
    (tmp_path / "poses.json").write_text(json.dumps({"fl_x": 20, "w": 8, "h": 8, "frames": frames}))
    assert read_poses(tmp_path / "poses.json", (8, 8))[1] == names


def test_bad_poses_are_named(run, light, tmp_path):
    (tmp_path / "bad.json").write_text('{"frames": [{"transform_matrix": 3}]}')
    with pytest.raises(UserError, match="focal length"):
        relit(str(run), [], str(light), None, str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match="cannot be read"):
        relit(str(run), [], str(light), None, str(tmp_path / "none.json"))


def test_only_a_material_is_relit(tiny_scene, light, tmp_path):
    cfg = load_config(ROOT / "confs/dtu-wmask.yaml", [*tiny_words(), f"dataset.root_dir={tiny_scene}", "trainer.max_steps=1"])
    trainer(cfg, tmp_path / "run").save()
    with pytest.raises(UserError, match=r"model\.name=neus; train a material first"):
        relit(str(tmp_path / "run"), [], str(light), None, None)
