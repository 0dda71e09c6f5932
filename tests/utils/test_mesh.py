import zipfile

import mcubes
import numpy as np
import pytest
import torch
import trimesh

from utils import marching_cubes as S
from utils import mesh as M
from utils.errors import UserError
from utils.rays import Cameras


def sphere(r=0.6):
    return lambda x: x.norm(dim=1) - r


def torus(x):
    return torch.hypot(torch.hypot(x[:, 0], x[:, 1]) - 0.5, x[:, 2]) - 0.15


def closed(mesh):
    edges = np.sort(np.asarray(mesh.faces)[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


@pytest.mark.parametrize("f, euler, volume", [(sphere(), 2, 4 / 3 * np.pi * 0.6**3), (torus, 0, 2 * np.pi**2 * 0.5 * 0.15**2)])
def test_known_surfaces(f, euler, volume):
    mesh = S.extract(f, 1.0, 160)
    assert mesh.is_watertight and closed(mesh) and mesh.euler_number == euler
    assert f(torch.from_numpy(mesh.vertices)).abs().max() < 1e-3
    assert mesh.volume == pytest.approx(volume, rel=2e-3)  # positive: normals point outwards
    assert len(np.unique(mesh.vertices, axis=0)) == len(mesh.vertices)
    assert mesh.area_faces.min() > 0


def test_agrees_with_dense_marching_cubes_on_the_same_lattice():
    f = S._Clipped(torus, 1.0, 0.0, "cpu", 10**6)
    cells, corner, size = S._coarse_cells(f, 64, 1.5)
    lat = S._lattice(cells, corner, size, 100, 1.0)
    mesh = S.extract(torus, 1.0, 100, coarse=64)
    axis = [lat.origin[i] + lat.h * np.arange(lat.blocks * S.B + 1) for i in range(3)]
    grid = torch.from_numpy(np.stack(np.meshgrid(*axis, indexing="ij"), -1).reshape(-1, 3))
    dense = torus(grid).reshape(len(axis[0]), len(axis[1]), len(axis[2])).numpy()
    vertices, faces = mcubes.marching_cubes(dense, 0.0)
    assert len(mesh.vertices) == pytest.approx(len(vertices), rel=0.01) and len(mesh.faces) == pytest.approx(len(faces), rel=0.01)
    assert mesh.volume == pytest.approx(-trimesh.Trimesh(vertices, faces, process=False).volume * lat.h**3, rel=1e-4)


def test_thin_parts_are_followed_across_blocks():
    def rod_and_ball(x):  # a rod thinner than a coarse cell
        a, b = torch.tensor([-0.7, -0.3, 0.2]), torch.tensor([0.6, 0.5, -0.4])
        t = ((x - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        return torch.minimum((x - a - t[:, None] * (b - a)).norm(dim=1) - 0.006, (x - a).norm(dim=1) - 0.1)

    mesh = S.extract(rod_and_ball, 1.0, 400, coarse=64)
    assert closed(mesh) and mesh.euler_number == 2
    assert np.abs(mesh.bounds[1] - [0.606, 0.506, mesh.bounds[1][2]]).max() < 5e-3


def test_follows_a_field_steeper_than_the_bound():
    mesh = S.extract(lambda x: 20 * torus(x), 1.0, 120)
    assert closed(mesh) and mesh.euler_number == 0


def test_noisy_arithmetic_leaves_no_seam():
    """Values that change in the last bits from one call to the next must not open the mesh."""
    g = torch.Generator().manual_seed(0)
    mesh = S.extract(lambda x: x.abs().max(dim=1).values - 0.5 + 2e-7 * torch.randn(len(x), generator=g), 1.0, 100)
    assert closed(mesh)


def test_flat_faces_on_lattice_points():
    mesh = S.extract(lambda x: (x.abs().max(dim=1).values - 0.5).mul(64).round() / 64, 1.0, 64, coarse=32)
    assert closed(mesh)


def test_surface_cut_by_the_sphere_closes_on_it():
    mesh = S.extract(lambda x: x[:, 2] - 0.2, 1.0, 128)
    assert closed(mesh) and np.linalg.norm(mesh.vertices, axis=1).max() < 1.001
    assert mesh.volume == pytest.approx(np.pi * (2 / 3 + 0.2 - 0.2**3 / 3), rel=0.01)


def test_radius_and_level():
    mesh = S.extract(sphere(1.0), 2.0, 96, level=0.3)
    assert np.linalg.norm(mesh.vertices, axis=1) == pytest.approx(1.3, abs=2e-3)


def test_resolution_is_that_of_the_object():
    mesh = S.extract(lambda x: (x - 0.3).norm(dim=1) - 0.03, 1.0, 96)
    assert closed(mesh) and len(mesh.vertices) > 3000


@pytest.mark.slow
def test_resolution_512_is_quick():
    import time

    start = time.perf_counter()
    mesh = S.extract(sphere(0.4), 1.0, 512)
    assert time.perf_counter() - start < 30 and mesh.is_watertight


@pytest.mark.parametrize(
    "f, words", [(lambda x: x.norm(dim=1) + 0.02, "0.02 to 1.* inside radius 1"), (lambda x: x[:, 0] * float("nan"), "not finite")]
)
def test_errors_state_the_range_of_the_field(f, words):
    with pytest.raises(UserError, match=words):
        S.extract(f, 1.0, 64, coarse=32)


def three_balls():
    balls = [trimesh.creation.icosphere(s, r) for s, r in ((3, 0.1), (2, 0.5), (1, 0.05))]
    for ball, x in zip(balls, (0, 2, 4)):
        ball.apply_translation([x, 0, 0])
        ball.visual.vertex_colors = np.tile([10 * x, 20, 30, 255], (len(ball.vertices), 1))
    return trimesh.util.concatenate(balls)


def test_components():
    mesh = three_balls()
    one = M.keep_components(mesh, 1, 0)
    assert len(one.faces) == 320 and one.vertices[:, 0].mean() == pytest.approx(2) and one.visual.vertex_colors[0, 0] == 20
    assert len(M.keep_components(mesh, 2, 0).faces) == 320 + 1280
    assert len(M.keep_components(mesh, 0, 100).faces) == 320 + 1280
    assert len(M.keep_components(mesh, 0, 0).faces) == len(mesh.faces)
    assert len(M.keep_components(mesh, 3, 10**6).faces) == 320  # never empty
    assert len(M.keep_components(trimesh.Trimesh(), 1, 1).faces) == 0


def cameras_along_z(n=1, h=80, w=100, focal=100.0):
    K = torch.tensor([[focal, 0, (w - 1) / 2], [0, focal, (h - 1) / 2], [0, 0, 1]]).repeat(n, 1, 1)
    c2w = torch.eye(4)[:3].repeat(n, 1, 1)
    c2w[:, 2, 3] = -2.0
    return Cameras(K, c2w, h, w)


def test_culling():
    mesh = trimesh.creation.icosphere(4, 0.4)
    cameras, masks = cameras_along_z(2), torch.zeros(2, 80, 100, dtype=torch.uint8)
    masks[0, :, 50:] = 255
    masks[1] = 255
    half = M.cull_by_masks(mesh, cameras, masks, 0.0)
    assert -0.02 < half.vertices[:, 0].min() < 0.05 and 0.4 < len(half.faces) / len(mesh.faces) < 0.55
    wider = M.cull_by_masks(mesh, cameras, masks, 0.05)
    assert -0.14 < wider.vertices[:, 0].min() < -0.06
    assert len(M.cull_by_masks(mesh, cameras, masks, 0.0, views=[1]).faces) == len(mesh.faces)
    assert len(M.cull_by_masks(mesh, cameras, masks, -1.0).faces) == len(mesh.faces)
    assert len(M.cull_by_masks(mesh, cameras, masks * 0, 0.0).faces) == 0
    away = mesh.copy()
    away.apply_translation([50, 0, 0])  # outside every image: no mask culls it
    assert len(M.cull_by_masks(away, cameras, masks * 0, 0.0).faces) == len(mesh.faces)


def test_faces_in_few_images_are_culled():
    mesh, cameras = trimesh.creation.icosphere(4, 0.4), cameras_along_z(3)
    cameras.c2w[0, 0, 3] = 50.0  # its image does not contain the ball
    cameras.c2w[1, 0, 3] = 0.9  # its image contains half of the ball
    assert M.cull_unseen(mesh, cameras, 1) is mesh and M.cull_unseen(mesh, cameras, 0) is mesh
    part = M.cull_unseen(mesh, cameras, 2)
    assert 0.1 < len(part.faces) / len(mesh.faces) < 0.9 and part.vertices[:, 0].min() > -0.3
    assert len(M.cull_unseen(mesh, cameras, 3).faces) == 0 and len(M.cull_unseen(mesh, cameras, 1, views=[0]).faces) == 0


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
@pytest.mark.parametrize("coloured", [True, False])
def test_files_round_trip(tmp_path, suffix, coloured):
    mesh = trimesh.creation.icosphere(2, 0.7)
    if coloured:
        mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(mesh.vertices), 4), np.uint8) | [0, 0, 0, 255]
    path = tmp_path / "new" / f"m{suffix}"
    M.save_mesh(mesh, path)
    back = M.load_mesh(path)
    assert np.allclose(back.vertices, mesh.vertices, atol=1e-6) and (back.faces == mesh.faces).all()
    if coloured:
        assert (M._colours(back)[:, :3] == mesh.visual.vertex_colors[:, :3]).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_point_cloud_file(tmp_path):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "p.ply")
    assert len(M.load_mesh(tmp_path / "p.ply", points=True).vertices) == 3
    with pytest.raises(UserError, match="no surface"):
        M.load_mesh(tmp_path / "p.ply")


def test_bad_files(tmp_path):
    (tmp_path / "junk.ply").write_bytes(b"ply\nformat nonsense\n\x00\x01")
    (tmp_path / "empty.obj").write_text("")
    (tmp_path / "index.obj").write_text("v 0 0 0\nv 1 0 0\nf 1 2 9\n")
    (tmp_path / "a.xyzw").write_text("1 2 3")
    for name in ("missing.ply", "junk.ply", "empty.obj", "index.obj", "a.xyzw"):
        with pytest.raises(UserError, match=name):
            M.load_mesh(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        M.save_mesh(trimesh.creation.box(), tmp_path / "file" / "m.ply")
    with pytest.raises(UserError, match=r"'\.xyz'"):
        M.save_mesh(trimesh.creation.box(), tmp_path / "m.xyz")


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_vertices_that_are_not_finite_are_dropped(tmp_path, suffix, caplog):
    mesh = trimesh.creation.icosphere(2, 0.7)
    used = int((mesh.faces == 5).any(1).sum())
    vertices = np.array(mesh.vertices)
    vertices[5] = np.nan
    M.save_mesh(trimesh.Trimesh(vertices, mesh.faces, process=False), tmp_path / f"m{suffix}")
    back = M.load_mesh(tmp_path / f"m{suffix}")
    assert len(back.faces) == len(mesh.faces) - used and np.isfinite(back.vertices).all() and back.bounds[1].max() == pytest.approx(0.7)
    assert f"1 of {len(vertices)} vertices are not finite: dropped with {used} faces" in caplog.text


def test_points_that_are_not_finite_are_dropped(tmp_path):
    cloud = np.vstack([np.eye(3), [[np.inf, 0, 0]]])
    trimesh.PointCloud(cloud).export(tmp_path / "p.ply")
    assert np.array_equal(M.load_mesh(tmp_path / "p.ply", points=True).vertices, np.eye(3))
    trimesh.PointCloud(cloud * np.nan).export(tmp_path / "none.ply")
    with pytest.raises(UserError, match="0 vertices"):
        M.load_mesh(tmp_path / "none.ply", points=True)


@pytest.mark.parametrize("suffix", [".zip", ".3mf", ".gz", ".bz2", ".tar"])
def test_archives_are_refused_before_they_are_opened(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(trimesh, "load", lambda *a, **k: pytest.fail("opened"))
    with zipfile.ZipFile(tmp_path / f"m{suffix}", "w") as archive:
        archive.writestr("m.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(UserError, match="is an archive; unpack it"):
        M.load_mesh(tmp_path / f"m{suffix}")


def test_large_files_and_false_counts_are_refused(tmp_path, monkeypatch):
    xyz = "property float x\nproperty float y\nproperty float z\n"
    for kind, body in (("ascii", ""), ("binary_little_endian", ""), ("binary_little_endian", xyz)):
        (tmp_path / "m.ply").write_text(f"ply\nformat {kind} 1.0\nelement vertex 999999999999\n{body}end_header\n0 0 0\n")
        with pytest.raises(UserError, match=r"m\.ply"):
            M.load_mesh(tmp_path / "m.ply", points=True)
    monkeypatch.setattr(M, "MAX_BYTES", 50)
    with pytest.raises(UserError, match="GiB, expected at most"):
        M.load_mesh(tmp_path / "m.ply")


def test_transform_keeps_normals_outside():
    mesh = trimesh.creation.box()
    matrix = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    matrix[0, 3] = 5
    moved = M.transform(mesh, matrix)
    assert moved.volume == pytest.approx(8) and moved.centroid == pytest.approx([5, 0, 0])
    assert M.transform(mesh, np.diag([-1.0, 1, 1, 1])).volume == pytest.approx(1)


def test_render():
    mesh, cam = trimesh.creation.icosphere(5, 0.5), cameras_along_z(1, 120, 160, 160.0)
    image = M.render_mesh(mesh, cam.K[0], cam.c2w[0], 120, 160)
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8 and (image[0, 0] == 255).all()
    assert np.abs(image[59, 79].astype(int) - [127, 127, 0]).max() < 8  # the near side faces the camera: n = -z
    covered = (image != 255).any(2)
    radius = 160 * 0.5 / np.sqrt(2**2 - 0.5**2)
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=0.04)
    assert np.argwhere(covered).mean(0) == pytest.approx([59.5, 79.5], abs=0.3)
    mesh.visual.vertex_colors = np.tile([200, 10, 60, 255], (len(mesh.vertices), 1))
    assert (M.render_mesh(mesh, cam.K[0], cam.c2w[0], 120, 160, "vertex")[59, 79] == [200, 10, 60]).all()
    assert M.render_mesh(mesh, cam.K[0], cam.c2w[0], 120, 160, "shade")[59, 79, 0] > 230
    with pytest.raises(ValueError, match="color"):
        M.render_mesh(mesh, cam.K[0], cam.c2w[0], 4, 4, "red")
